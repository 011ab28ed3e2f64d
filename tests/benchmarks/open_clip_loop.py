"""What open_clip's users write to encode a folder: `open_clip_loop ARCHITECTURE WEIGHTS FOLDER BATCH DEVICE`.

Its transform in a torch DataLoader with a worker per core, `encode_image` of N pictures at a time in inference mode, in
half precision on a GPU. Prints pictures a second, from when the model has encoded a batch.
"""

import os
import sys
import time

import open_clip
import torch
from PIL import Image


def main(architecture: str, weights: str, folder: str, batch: int, device: str) -> None:
    """Encode all pictures of a folder."""
    precision, dtype = ("fp16", torch.float16) if device == "cuda" else ("fp32", torch.float32)
    model, _, transform = open_clip.create_model_and_transforms(
        architecture, weights, weights_only=True, precision=precision, device=device
    )
    model.eval()
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, place: int) -> torch.Tensor:
            return transform(Image.open(paths[place]))

    side = model.visual.image_size[0]
    with torch.inference_mode():
        model.encode_image(torch.zeros(batch, 3, side, side, device=device, dtype=dtype)).cpu()
        started = time.perf_counter()
        loader = torch.utils.data.DataLoader(
            Pictures(), batch_size=batch, num_workers=os.cpu_count() or 1, pin_memory=device == "cuda"
        )
        rows = [model.encode_image(pixels.to(device, dtype, non_blocking=True)).float().cpu() for pixels in loader]
    print(len(torch.cat(rows)) / (time.perf_counter() - started))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), sys.argv[5])
