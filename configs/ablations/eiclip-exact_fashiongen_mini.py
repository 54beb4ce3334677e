"""The mixture of softmaxes itself, not its expectation inside, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-exact_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.learner.expectation
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(learner=dict(expectation='exact', max_combinations=8))
