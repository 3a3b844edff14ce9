"""Labelled data from scratch: structures, conformations and labels, in campaigns that survive a kill."""
