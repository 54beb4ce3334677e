"""A prior that trusts learned senses of frequent entities more, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-frequency_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.learner.prior
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(learner=dict(prior='frequency'))
