"""``Quantize("auto")``: the scheme of each product chosen by measurement."""
