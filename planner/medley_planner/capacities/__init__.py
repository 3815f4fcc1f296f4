"""How much one replica serves within the objectives, by measurements, tables or the roofline, and its variants."""
