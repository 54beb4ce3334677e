"""Two learned senses an entity, beside the general one, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-senses_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.learner: senses, and a prior that is learned
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(learner=dict(num_learned=2, prior='learned'))
