"""Why there is no plan, or not for everything, and the least that would have to give way."""
