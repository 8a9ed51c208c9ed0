"""What is measured in PyTorch beside ours, each in a process of its own."""
