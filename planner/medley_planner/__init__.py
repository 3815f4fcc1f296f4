"""The pure decision core of Medley: request sizes, capacities and prices in, an integer mix of GPUs with reasons out.

Nothing here knows Kubernetes, HTTP or the time of day: the core takes values and returns values.
"""
