"""Why a photo and a text match: planted cases, sums by hand, and the tool on a small model."""

import importlib
import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import shop
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.visualization.left_out import left_out
from eiclip_mm.visualization.saliency import agreement, grad_cam, occlusion

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/visualization'))
import explain_match as tool

QUADRANTS = {'top left': (0, 0), 'top right': (0, 1), 'bottom left': (1, 0), 'bottom right': (1, 1)}


def planted(row: int, column: int, colour: int = 0, size: int = 32) -> Tensor:
    """(3, size, size): grey, and one quadrant in a colour."""
    photo = torch.full((3, size, size), 100, dtype=torch.uint8)
    half = size // 2
    rows, columns = slice(row * half, (row + 1) * half), slice(column * half, (column + 1) * half)
    photo[:, rows, columns] = 0
    photo[colour, rows, columns] = 255
    return photo


class Red(nn.Module):
    """A convolutional tower that can be read: its first feature is red less blue, its second 1."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 8, 8)
        self.global_pool = SelectAdaptivePool2d(pool_type='avg', flatten=True)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0], self.conv.weight[0, 2] = 1 / 64, -1 / 64
            self.conv.bias.copy_(torch.tensor([0.0, 1.0]))

    def forward(self, photo: Tensor) -> Tensor:
        return self.global_pool(self.conv(photo.float() / 255))


def unit(embed):
    return lambda photo: F.normalize(embed(photo), dim=-1)


@pytest.fixture(scope='module')
def vit() -> nn.Module:
    """Small real towers that have learned how red or blue a quadrant is, short of saturation."""
    model = tiny.model('OpenCLIP').train()
    photos, right = [], []
    for strength in torch.linspace(0, 1, 5):
        for colour, sign in ((0, 1), (2, -1)):
            for place in QUADRANTS.values():
                photo = 100 + (planted(*place, colour).float() - 100) * strength
                photos.append(photo.round().to(torch.uint8))
                right.append(0.6 * sign * strength)
    photos, right = torch.stack(photos), torch.stack(right)
    optimizer = torch.optim.Adam(model.towers.clip.visual.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model.encode_image(photos)[:, 0] - right).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def one(place: int, size: int) -> Tensor:
    return F.one_hot(torch.tensor(place), size).float()


# ------------------------------------------------------------------------------- the photo


@pytest.mark.parametrize('place', QUADRANTS.values(), ids=list(QUADRANTS))
def test_both_ways_find_the_quadrant_that_decides_in_a_conv_net(place):
    tower = Red().requires_grad_(False)
    maps = [
        grad_cam(tower, tower, planted(*place), one(0, 2)),
        occlusion(unit(tower), planted(*place), one(0, 2), 4),
    ]
    inside = np.zeros((4, 4), dtype=bool)
    inside[place[0] * 2 :][:2, place[1] * 2 :][:, :2] = True
    for found in maps:
        assert (found[inside] > 0).all()
        assert np.abs(found[~inside]).max() < 1e-6
    assert agreement(*maps) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('place', QUADRANTS.values(), ids=list(QUADRANTS))
@pytest.mark.parametrize('colour', [0, 2], ids=['for', 'against'])
def test_both_ways_agree_in_sign_in_a_vit(vit, place, colour):
    product = one(0, 32)
    photo = planted(*place, colour)
    cam = grad_cam(vit.towers.clip.visual, vit.towers.encode_image, photo, product)
    covered = occlusion(vit.encode_image, photo, product, 2)
    assert cam.shape == (4, 4) and np.abs(cam).max() == pytest.approx(1)
    quadrants = cam.reshape(2, 2, 2, 2).mean((1, 3))
    sign = 1 if colour == 0 else -1
    for found in (quadrants, covered):
        assert np.sign(found[place]) == sign
        assert np.abs(found).argmax() == 2 * place[0] + place[1]


def test_the_map_is_features_times_their_slopes():
    """Slopes by finite differences, in double precision; the tower's pool reads the map."""
    torch.manual_seed(0)
    tower = Red().double().requires_grad_(False)
    tower.conv.weight.normal_(std=0.1)
    tower.global_pool.forward = lambda maps: (maps.mean((2, 3)) ** 3).tanh()
    photo = torch.randint(256, (3, 24, 16), dtype=torch.uint8)
    product = F.normalize(torch.randn(2, dtype=torch.float64), dim=0)

    photo[:, 0] = photo[:, -1] = photo[:, :, 0] = photo[:, :, -1] = 7  # the ground

    def features_of(x):
        return tower.conv(x[None].double() / 255)[0]

    def embed(x):
        return tower.global_pool(tower.conv(x.double() / 255))

    def head(maps):  # not linear
        return (maps.mean((2, 3)) ** 3).tanh()

    features, length = features_of(photo), embed(photo[None])[0].norm()
    slopes = torch.zeros_like(features)
    for place in np.ndindex(*features.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = features.clone()
            moved[place] += step
            ends.append(head(moved[None])[0] @ product / length)
        slopes[place] = (ends[0] - ends[1]) / 2e-5
    expected = ((features - features_of(torch.full_like(photo, 7))) * slopes).sum(0)
    expected /= expected.abs().max()
    found = grad_cam(tower, embed, photo, product)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_get_no_gradient_and_no_hook_stays(vit):
    visual = vit.towers.clip.visual
    before = vit.encode_image(planted(0, 0)[None])
    grad_cam(visual, vit.towers.encode_image, planted(0, 0), one(0, 32))
    assert all(p.grad is None for p in vit.parameters())
    assert not any(m._forward_pre_hooks for m in vit.modules())
    assert torch.equal(vit.encode_image(planted(0, 0)[None]), before)


TOWERS = {
    'open_clip ViT': dict(tiny.ARCHITECTURE['vision_cfg']),
    'open_clip ResNet': dict(image_size=64, layers=(1, 1, 1, 1), width=8, head_width=32),
    'timm, pooled': dict(timm_model_name='test_efficientnet', timm_pool='avg', timm_proj='mlp'),
    'timm, pooled in its head': dict(
        timm_model_name='test_convnext', timm_pool='avg', timm_proj='linear'
    ),
    'timm ViT': dict(timm_model_name='test_vit', timm_pool='token', timm_proj='linear'),
}


@pytest.mark.parametrize('name', TOWERS)
def test_every_kind_of_tower_has_a_map_that_moves_with_the_photo(name):
    config = dict(dict(image_size=160, timm_model_pretrained=False), **TOWERS[name])
    if 'timm_model_name' not in config:
        config.pop('timm_model_pretrained')
    model = tiny.model('OpenCLIP', dict(model=dict(tiny.ARCHITECTURE, vision_cfg=config)))
    model.eval().requires_grad_(False)
    size = config['image_size']
    maps = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        photo = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
        visual = model.towers.clip.visual
        maps.append(grad_cam(visual, model.towers.encode_image, photo, one(0, 32)))
    assert maps[0].ndim == 2 and min(maps[0].shape) >= 2
    assert np.isfinite(maps).all() and np.abs(maps[0] - maps[1]).max() > 1e-3


def test_a_tower_without_a_map_is_refused():
    with pytest.raises(ValueError, match=r'Linear: no Grad-CAM of this image tower.*occlusion'):
        grad_cam(nn.Linear(2, 2), lambda x: x, planted(0, 0), one(0, 2))


@pytest.mark.parametrize('cells', [1, 3, 5, 32])
def test_cells_cover_every_pixel_once(cells):
    """What embeds adds pixels up, so all drops together are the whole."""
    photo = torch.randint(256, (3, 32, 40), generator=torch.Generator().manual_seed(0))
    photo[:, 0] = photo[:, -1] = photo[:, :, 0] = photo[:, :, -1] = 0  # black is what covers
    found = occlusion(lambda x: x.double().sum((2, 3)), photo, one(1, 3).double(), cells)
    assert found.shape == (cells, cells)
    assert found.sum() == pytest.approx(photo[1].sum().item(), rel=1e-5)
    edges = [np.linspace(0, size, cells + 1).round().astype(int) for size in (32, 40)]
    first = photo[1, : edges[0][1], : edges[1][1]].sum().item()
    assert found[0, 0] == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize('cells', [0, 33])
def test_cells_that_do_not_fit_are_refused(cells):
    with pytest.raises(ValueError, match=f'cells must be from 1 to 32, got {cells}'):
        occlusion(Red(), planted(0, 0), one(0, 2), cells)


# ----------------------------------------------------------------------------- the product


def save(folder: Path, kind: str = 'EICLIP', **tokenizer) -> str:
    """A checkpoint of random weights that let entities count."""
    changes = dict(tokenizer=tiny.tokenizer(**tokenizer))
    model = tiny.model(kind, **changes)
    if kind == 'EICLIP':
        tiny.randomised(model.learner, 0.3)
    return str(shop.write_checkpoint(folder / f'{kind}.pth', model, kind=kind, **changes))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def inferencer(checkpoint) -> EICLIPInferencer:
    return EICLIPInferencer(checkpoint, device='cpu', batch_size=3)


@pytest.fixture(scope='module')
def image() -> Tensor:
    return F.normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)


TAGS = dict(brand=["Levi's"], composition=['silk', 'cotton'])
TEXT = "Red Levi's jeans, of cotton"


def product(text: str = TEXT, **entities) -> dict:
    return dict(description=text, entities=entities)


def test_each_part_is_left_out_and_all_is_embedded_again(inferencer, image):
    """Metadata are given, so that the texts without a word keep their entities."""
    cosine, parts = left_out(inferencer, product(**TAGS), image)
    plain = dict(
        word={
            'Red': "Levi's jeans, of cotton", 'Levi': "Red 's jeans, of cotton",
            's': "Red Levi' jeans, of cotton", 'jeans': "Red Levi's , of cotton",
            'of': "Red Levi's jeans, cotton", 'cotton': "Red Levi's jeans, of",
        },
        both={"Levi's": 'Red jeans, of cotton', 'cotton': "Red Levi's jeans, of"},
    )  # fmt: skip
    less = {
        "Levi's": dict(composition=['silk', 'cotton']),
        'silk': dict(brand=["Levi's"], composition=['cotton']),
        'cotton': dict(brand=["Levi's"], composition=['silk']),
    }
    expected = {('word', name): product(text, **TAGS) for name, text in plain['word'].items()}
    expected |= {('entity', name): product(**own) for name, own in less.items()}
    expected |= {('both', name): product(t, **less[name]) for name, t in plain['both'].items()}
    assert {(part.kind, part.name) for part in parts} == {*expected, ('entities', 'all entities')}
    whole = inferencer.encode_products(product(**TAGS))[0] @ image
    assert cosine == pytest.approx(float(whole), abs=1e-6)
    for part in parts:
        if part.kind == 'entities':
            after = inferencer.encode_products(product(**TAGS), entities=False)[0]
        else:
            after = inferencer.encode_products(expected[part.kind, part.name])[0]
        assert part.drop == pytest.approx(float(whole - after @ image), abs=1e-5)
        assert abs(part.drop) > 1e-4


def test_where_parts_stand_and_what_they_weigh(inferencer, image):
    _, parts = left_out(inferencer, 'a Golden Goose tee of silk', image)
    words = [(part.name, part.start) for part in parts if part.kind == 'word']
    assert words == [('a', 0), ('Golden', 2), ('Goose', 9), ('tee', 15), ('of', 19), ('silk', 22)]
    found = {(p.kind, p.type, p.name): (p.weight, p.start) for p in parts if p.kind != 'word'}
    assert found == {
        ('entity', 'brand', 'Golden Goose'): (1.0, 2),
        ('both', 'brand', 'Golden Goose'): (1.0, 2),
        ('entity', 'composition', 'silk'): (1.0, 22),
        ('both', 'composition', 'silk'): (1.0, 22),
        ('entities', None, 'all entities'): (None, None),
    }


@pytest.mark.parametrize('mention', ['cut', 'token'])
def test_a_mention_that_is_one_token_is_left_out_whole(tmp_path, image, mention):
    inferencer = EICLIPInferencer(save(tmp_path, mention=mention), device='cpu')
    cosine, parts = left_out(inferencer, product('a Golden Goose tee', brand=['Diesel']), image)
    assert [p.name for p in parts if p.kind == 'word'] == ['a', 'Golden Goose', 'tee']
    without = inferencer.encode_products(product('a tee', brand=['Diesel']))[0] @ image
    (goose,) = [p for p in parts if p.name == 'Golden Goose']
    assert goose.drop == pytest.approx(cosine - float(without), abs=1e-6)


def test_a_model_without_entities_has_words_alone(tmp_path, image):
    path = save(tmp_path, 'OpenCLIP')
    inferencer = EICLIPInferencer(path, device='cpu')
    cosine, parts = left_out(inferencer, 'red tee', image)
    assert [(p.kind, p.name) for p in parts] == [('word', 'red'), ('word', 'tee')]
    after = inferencer.encode_products(['tee', 'red']) @ image
    drops = [part.drop for part in parts]
    np.testing.assert_allclose(drops, cosine - after.numpy(), atol=1e-6)


# -------------------------------------------------------------------------------- the tool


@pytest.fixture(scope='module')
def photo(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('photo') / 'photo.png'
    Image.fromarray(planted(0, 1, size=48).permute(1, 2, 0).numpy()).save(path)
    return str(path)


def test_pictures_and_numbers(checkpoint, photo, inferencer, tmp_path, capsys):
    out = {suffix: tmp_path / f'match{suffix}' for suffix in ('.png', '.svg', '.json')}
    entities = ['--entities', 'brand=diesel', 'composition=silk', 'composition=cotton']
    for suffix in ('.png', '.svg'):
        tool.main(
            [checkpoint, photo, 'red tee $x$', *entities, '--out', str(out[suffix]), '--device',
             'cpu', '--json', str(out['.json']), '--image', 'both', '--cells', '5']
        )  # fmt: skip
    with Image.open(out['.png']) as picture:
        assert picture.size[0] > 1000
    svg = out['.svg'].read_text(encoding='utf-8')
    assert svg.startswith('<?xml') and 'brand: Diesel (weight 1.00)' in svg and '$x$' in svg
    result = json.loads(out['.json'].read_text(encoding='utf-8'))
    vector = inferencer.encode_images(photo)[0]
    tags = dict(brand=['diesel'], composition=['silk', 'cotton'])
    expected = inferencer.encode_products(product('red tee $x$', **tags))[0] @ vector
    assert result['cosine'] == pytest.approx(float(expected), abs=1e-6)
    assert np.shape(result['image']['occlusion']) == (5, 5)
    assert np.shape(result['image']['grad-cam']) == (4, 4)
    drops = {(part['kind'], part['name']): part['drop'] for part in result['left_out']}
    printed = capsys.readouterr().out
    for (kind, name), drop in drops.items():
        if kind == 'entity':
            assert f'{name} | entity | 1.00 | {drop:+.4f} |' in printed
    maps = [np.array(own, dtype=np.float32) for own in result['image'].values()]
    assert f'correlate by {agreement(*maps):.2f}' in printed


def test_the_same_picture_gives_the_same_svg(checkpoint, photo, tmp_path):
    out, texts = tmp_path / 'match.svg', []
    for _ in range(2):
        tool.main([checkpoint, photo, 'silk tee', '--out', str(out), '--cells', '2'])
        texts.append(out.read_text(encoding='utf-8'))
    assert texts[0] == texts[1] and texts[0].count('<image') == 2  # of the photo and of the map


@pytest.mark.parametrize('suffix', tool.FORMATS)
def test_a_full_disk_leaves_the_old_picture(checkpoint, photo, tmp_path, suffix):
    out = tmp_path / f'match{suffix}'
    out.write_bytes(b'old')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, limits[1]))
    try:
        with pytest.raises(SystemExit) as end:
            tool.main([checkpoint, photo, 'silk tee', '--out', str(out), '--cells', '2'])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert end.value.code == (
        f'{out} cannot be written: File too large. What stood there is as it was.'
    )
    assert out.read_bytes() == b'old' and list(tmp_path.iterdir()) == [out]


def test_long_texts_show_the_words_that_matter_most(tmp_path):
    figure = importlib.import_module('eiclip_mm.visualization.match_figure')
    drops = np.random.default_rng(0).normal(size=40)
    parts = [tool.LeftOut('word', f'w{i}', float(drop)) for i, drop in enumerate(drops)]
    rows = [part.name for part, _ in figure._rows(parts)]
    most = sorted(np.argsort(-np.abs(drops))[: figure.MOST])
    assert rows == [f'w{i}' for i in most]


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--entities', 'brand'], '--entities brand: must be TYPE=NAME'),
        (['--entities', 'colour=red'], 'must be TYPE=NAME with one of the types'),
        (['--entities', 'brand=Nobody'], 'the vocabulary has no such brand; it has e.g.'),
        (['--cells', '99'], 'cells must be from 1 to 32, got 99'),
    ],
)
def test_wrong_arguments_are_refused(checkpoint, photo, arguments, says):
    with pytest.raises(SystemExit) as end:
        tool.main([checkpoint, photo, 'tee', *arguments])
    assert says in end.value.code


def test_wrong_files_are_refused(checkpoint, photo, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r'checkpoint no\.pth does not exist'):
        tool.main(['no.pth', photo, 'tee'])
    with pytest.raises(SystemExit, match='not an image'):
        tool.main([checkpoint, checkpoint, 'tee'])
    with pytest.raises(SystemExit):
        tool.main([checkpoint, photo, 'tee', '--out', str(tmp_path / 'x.gif')])
    assert "--out must end in one of ('.png', '.svg')" in capsys.readouterr().err
