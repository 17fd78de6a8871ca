"""Train a small CLIP on two ranks, on aligned faces and their captions: torchrun --nproc-per-node 2 train_clip.py"""

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import laion_face


class Clip(nn.Module):
    """One tower for pictures of 32 x 32, one for the bytes of captions."""

    def __init__(self, width=64):
        super().__init__()
        self.see, self.read = nn.Sequential(nn.Flatten(), nn.LazyLinear(width)), nn.EmbeddingBag(256, width)

    def forward(self, pictures, captions):
        words = [list((caption or " ").encode()) for caption in captions]
        offsets = torch.tensor([0, *map(len, words)][:-1]).cumsum(0)
        seen, said = self.see(pictures), self.read(torch.tensor(sum(words, [])), offsets)
        return nn.functional.normalize(seen) @ nn.functional.normalize(said).T


def pixels(example):
    return {"pixels": np.asarray(example["image"].resize((32, 32)), np.float32).transpose(2, 0, 1) / 255}


torch.distributed.init_process_group("gloo")
rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
ds = laion_face.load_dataset("20M", split="train", data_dir="laion-face", streaming=True, mode="RGB", min_face_size=32)
ds = split_dataset_by_node(ds.shuffle(seed=1, buffer_size=1).map(pixels), rank=rank, world_size=ranks)
loader = torch.utils.data.DataLoader(ds, batch_size=8, num_workers=1, collate_fn=laion_face.collate)

clip = Clip()
clip(torch.zeros(1, 3, 32, 32), ["a"])
model = DistributedDataParallel(clip)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for batch in laion_face.in_step(loader):
    alike = model(batch["pixels"], batch["caption"])
    loss = nn.functional.cross_entropy(alike / 0.07, torch.arange(len(alike)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"rank {rank}: {loss.item():.3f}", flush=True)
torch.distributed.destroy_process_group()
