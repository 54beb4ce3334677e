"""Does CE-Selector drop what harms? The mini Fashion-Gen with a useless label and a harmful code.

Run     python tools/train.py configs/ablations/eiclip-planted_fashiongen_mini.py
        after tools/dataset_converters/build_entities.py with this config
Parent  eiclip_fashiongen_mini.py; differs in data and tokenizer.vocab: two entity types more,
        which the text does not hold
"""

_base_ = '../eiclip_fashiongen_mini.py'
entity_types = (*_base_.entity_types, 'label', 'code')
tokenizer = dict(_base_.tokenizer, vocab=_base_.data_root + 'entities_planted.json')
planted = dict(entity_types=entity_types, tokenizer=tokenizer)
train_file = 'planted_train.h5'
model = dict(tokenizer=tokenizer)
train_dataloader = dict(dataset=dict(ann_file=train_file, **planted))
val_dataloader = dict(dataset=dict(ann_file=train_file, **planted))
test_dataloader = dict(dataset=dict(ann_file='planted_validation.h5', **planted))
