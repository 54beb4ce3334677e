r"""Tags from text: the shopper's query, no metadata, Fashion Product Images.

Test    python tools/test.py configs/ablations/eiclip-query_products.py \
            work_dirs/eiclip_products/best_*.pth
Parent  eiclip_products.py; differs in tokenizer.tags of the test split: nothing is trained
"""

_base_ = '../eiclip_products.py'
checkpoint_of = 'configs/eiclip_products.py'
compare_with = 'configs/baselines/clip_products.py'
test_dataloader = dict(dataset=dict(tokenizer=dict(tags='text')))
