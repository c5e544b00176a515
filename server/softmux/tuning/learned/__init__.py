"""What a task learns: the methods, built by PEFT, taken out as tensors and put back."""
