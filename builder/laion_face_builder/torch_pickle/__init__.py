"""Read files of `torch.save` without torch, and run nothing of them: container, unpickler, and a dict in chunks."""
