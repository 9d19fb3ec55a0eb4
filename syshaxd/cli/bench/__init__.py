"""`syshax bench`: load on the endpoint, data sets, calibration of units."""
