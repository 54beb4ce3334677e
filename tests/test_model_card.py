"""A model card says what checkpoint, config and tests say, and refuses what does not fit."""

import hashlib
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import shop
import tiny
import yaml
from confined import confined

from eiclip_mm.apis import open_checkpoint

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/deployment'))
model_card = importlib.import_module('model_card')

PROTOCOL = 'full/first-image'
RESULTS = {
    f'{PROTOCOL}/i2t/R@1': 21.2257, f'{PROTOCOL}/t2i/R@1': 24.0, f'{PROTOCOL}/t2i/R@10': 67.5,
    f'{PROTOCOL}/t2i/median_rank': 5.0, f'{PROTOCOL}/SumR': 287.72,
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    """Of a model whose CE-Selector leaves out silk."""
    changes = dict(selector=dict(type='EffectCESelector'))
    model = tiny.randomised(tiny.model(**changes), 0.2)
    model.selector.weight.fill_(1)
    model.selector.weight[-1] = 0
    return shop.write_checkpoint(tmp_path / 'best.pth', model, **changes)


def card_of(checkpoint) -> dict:
    with open(checkpoint, 'rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    return dict(
        data=dict(dataset='CocoProducts', file='val.json', products=7),
        protocol=dict(name=PROTOCOL, ties='against', queries=None),
        model=dict(config='eiclip_shop', checkpoint_sha256=sha256, chosen_on=dict(reported=False)),
        queries=dict(i2t=7, t2i=9),
        manifest=None,
    )


def write_test(folder, card, results=RESULTS):
    """What tools/test.py writes."""
    (folder / 'test_results.json').write_text(json.dumps(results))
    (folder / 'protocol_cards.json').write_text(json.dumps({PROTOCOL: card}))


def written(checkpoint, *options) -> str:
    out = checkpoint.parent / 'MODEL_CARD.md'
    model_card.main([str(checkpoint), '--license', 'cc-by-4.0', '--out', str(out), *options])
    return out.read_text(encoding='utf-8')


def test_numbers_and_what_they_rest_on_are_found_beside_the_checkpoint(checkpoint):
    write_test(checkpoint.parent, card_of(checkpoint))
    card = written(checkpoint)
    head = yaml.safe_load(card.split('---')[1])
    assert head['license'] == 'cc-by-4.0'
    found = head['model-index'][0]['results'][0]
    assert found['dataset']['name'] == f'val.json, {PROTOCOL}'
    values = {metric['type']: metric['value'] for metric in found['metrics']}
    assert values == {'i2t/R@1': 21.23, 't2i/R@1': 24.0, 'SumR': 287.72}
    assert '# eiclip_shop, best.pth' in card
    assert '| photo to text | 21.23 |  |  |  |  |' in card
    assert '| text to photo | 24 |  | 67.5 |  | 5 |' in card
    assert 'SumR 287.7.' in card
    assert '- protocol: name full/first-image, ties against\n' in card
    assert '- queries: i2t 7, t2i 9' in card and 'reported no' in card
    assert 'manifest' not in card


def test_protocols_are_results_of_their_own(checkpoint):
    card, other = card_of(checkpoint), 'full/product'
    results = RESULTS | {f'{other}/SumR': 250.0}
    write_test(checkpoint.parent, card, results)
    cards = {PROTOCOL: card, other: card}
    (checkpoint.parent / 'protocol_cards.json').write_text(json.dumps(cards))
    found = yaml.safe_load(written(checkpoint).split('---')[1])['model-index'][0]['results']
    sums = {one['dataset']['name']: one['metrics'][-1]['value'] for one in found}
    assert sums == {f'val.json, {PROTOCOL}': 287.72, f'val.json, {other}': 250.0}


def test_entities_that_the_selector_keeps(checkpoint):
    card = written(checkpoint)
    assert "| brand | 3 | 3 | Diesel, Golden Goose, Levi's |" in card
    assert '| composition | 2 | 1 | cotton, silk |' in card


def test_nothing_is_made_up(checkpoint):
    card = written(checkpoint)
    assert 'Not measured yet' in card and 'model-index' not in card
    assert f'| sha256 | {open_checkpoint(checkpoint).sha256} |' in card
    assert '| seed | not said |' in card and '| epoch | 1 |' in card
    assert 'Weights: cc-by-4.0. Code (eiclip_mm): Apache-2.0.' in card
    assert 'EffectCESelector' in card  # the config


def test_the_lines_of_use_run(checkpoint, tmp_path, monkeypatch):
    code = re.search(r'```python\n(.*?)```', written(checkpoint), re.S)[1]
    shop.write_photos(tmp_path, 1)
    (tmp_path / '0.png').rename(tmp_path / 'photo.jpg')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names['scores'].shape == (1, 1) and names['products'].shape == (1, 32)


def test_results_of_another_checkpoint_are_refused(checkpoint):
    other = card_of(checkpoint)
    other['model']['checkpoint_sha256'] = 'abc'
    write_test(checkpoint.parent, other)
    with pytest.raises(SystemExit, match='is of another checkpoint: sha256 abc'):
        written(checkpoint)
    with pytest.raises(SystemExit, match='have no protocol card'):
        empty = checkpoint.parent / 'none.json'
        empty.write_text('{}')
        written(checkpoint, '--cards', str(empty))
    empty.write_text('no json')
    with pytest.raises(SystemExit, match=r'none\.json is not JSON'):
        written(checkpoint, '--cards', str(empty))


@pytest.mark.parametrize('option', ['--results', '--cards'])
@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('{"a": "x"}', 'odd.json is not what tools/test.py writes'),
        ('[["a", 1]]', 'odd.json is not what tools/test.py writes'),
        ('5', 'odd.json is not what tools/test.py writes'),
        ('[' * 10**5, 'odd.json is not JSON of ours: '),
        (None, 'odd.json is not there, or no file'),
    ],
)
def test_files_of_something_else_are_refused(checkpoint, option, content, says):
    write_test(checkpoint.parent, card_of(checkpoint))
    path = checkpoint.parent / 'odd.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=says):
        written(checkpoint, option, str(path))


@pytest.mark.parametrize('part', ['data', 'model'])
def test_a_card_that_lacks_a_part_is_refused(checkpoint, part):
    card = card_of(checkpoint)
    del card[part]['file' if part == 'data' else 'config']
    write_test(checkpoint.parent, card)
    with pytest.raises(SystemExit, match=rf"{PROTOCOL} lacks \['{part}\."):
        written(checkpoint)
    write_test(checkpoint.parent, card | {part: 5})
    with pytest.raises(SystemExit, match=r'lacks|is of another checkpoint'):
        written(checkpoint)


def test_a_device_is_no_file_of_results():
    kind, message = confined(model_card.merged, [Path('/dev/zero')], dict, seconds=20)
    assert kind == 'FileNotFoundError' and '/dev/zero is not there, or no file' in message


def test_the_licence_of_the_weights_is_asked(checkpoint, capsys):
    for options in ([], ['--license', ' ']):
        with pytest.raises(SystemExit):
            model_card.main([str(checkpoint), '--out', str(checkpoint.parent / 'a.md'), *options])
        assert '--license' in capsys.readouterr().err


def test_a_model_without_entities(tmp_path):
    path = shop.write_checkpoint(tmp_path / 'clip.pth', kind='OpenCLIP')
    card = written(path)
    assert 'None: the model reads texts alone.' in card and "'entities'" not in card.split('##')[1]
