"""A prior over senses that is learned, one a type, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-prior_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.learner.prior
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(learner=dict(prior='learned'))
