"""Calibration: from pictures to the range of every activation that is to be quantised.

    pictures, coverage      which pictures, what they show, and whether an evaluation set holds them too
    collect → histogram     the deployed graphs' activations, counted while they pass; none is kept
    observers → ranges      where to clip: largest value, percentile, entropy or squared error

Ranges are a JSON file; what is done with them stands in the modules about quantisation.
"""
