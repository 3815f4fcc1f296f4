"""A plan as one HTML file that needs nothing else: text and tables by Jinja, plots by matplotlib as inline SVG.

Both come with the extra `report`.
"""
