"""Scores of a test and curves of runs, as files and pictures; no toolbox is needed."""
