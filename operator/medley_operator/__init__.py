"""The Kubernetes shell around the planner: it observes, asks for a plan, decides, acts and reports."""
