"""Score an open_clip model, of which this package knows nothing, under named protocols."""

import argparse
from pathlib import Path

import torch

from eiclip_mm.datasets import FashionGen, LoadProductImage
from eiclip_mm.evaluation import Embeddings, evaluate, recall_table

import open_clip  # isort: skip  after eiclip_mm, which prepares torchvision
from PIL import Image  # isort: skip

PROTOCOLS = ('full/first-image', 'full/product')


@torch.no_grad()
def embed(path: str, model: torch.nn.Module, transform, tokenizer) -> Embeddings:
    """Every photo and every description of a Fashion-Gen file."""
    photos = FashionGen(ann_file=path, views='all', pipeline=[LoadProductImage()])
    firsts = [photo for photo in photos if photo['view'] == 0]
    pixels = torch.stack([transform(Image.fromarray(photo['img'])) for photo in photos])
    texts = tokenizer([photo['text_fields']['description'] for photo in firsts])
    return Embeddings(
        image=torch.cat([model.encode_image(p, normalize=True) for p in pixels.split(64)]),
        image_product_id=torch.tensor([photo['product_id'] for photo in photos]),
        product=torch.cat([model.encode_text(t, normalize=True) for t in texts.split(64)]),
        product_id=torch.tensor([photo['product_id'] for photo in firsts]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', help='a Fashion-Gen file')
    parser.add_argument('--model', default='tiny-clip', help='one of open_clip.list_models()')
    parser.add_argument('--pretrained', help='tag or file of its weights; random without')
    parser.add_argument('--out', help='file for the embeddings, which tools/analysis_tools read')
    args = parser.parse_args()
    open_clip.add_model_config(Path(__file__).with_name('tiny-clip.json'))
    torch.manual_seed(0)  # of random weights
    model, _, transform = open_clip.create_model_and_transforms(args.model, args.pretrained)
    tokenizer = open_clip.get_tokenizer(args.model)
    embeddings = embed(args.data, model.eval(), transform, tokenizer)
    if args.out:
        embeddings.save(args.out)
    print(recall_table({name: evaluate(embeddings, name) for name in PROTOCOLS}))


if __name__ == '__main__':
    main()
