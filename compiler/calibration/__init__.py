"""What is measured and learned on calibration inputs: data, statistics, gradients, codes."""
