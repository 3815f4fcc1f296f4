"""What goes in is checked before it is planned, what comes out by code that shares nothing with the solver."""
