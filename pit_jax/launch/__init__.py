"""Starting runs and keeping them going: here, on Cloud TPUs, on GKE."""
