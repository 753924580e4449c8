"""The master: which node does what, the lives of runs, the cluster's members."""
