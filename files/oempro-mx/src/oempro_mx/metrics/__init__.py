"""What the node exporter serves to Prometheus of queue, mailbox, certificate and log."""
