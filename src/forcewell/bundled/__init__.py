"""Real data that ships with the package; sources and licences are in README.md here."""
