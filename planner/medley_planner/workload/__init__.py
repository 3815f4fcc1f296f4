"""What is asked of a service: joint histograms of request sizes from traces, presets or margins, and arrivals."""
