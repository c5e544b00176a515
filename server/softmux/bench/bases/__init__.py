"""What speed is measured on where no real model is needed: random weights and random tasks."""
