"""Estimators of capacity that need more than the planner may: other packages, processes, files."""
