import torch

torch.set_num_threads(1)  # two threads of tiny work wait for each other on a busy machine
