"""Evaluation: embeddings to ranks to the tables of named protocols."""

import mmpretrain.evaluation  # noqa: F401  registers the parent's metrics for configs

from .candidates import Candidates
from .embeddings import Embeddings
from .functional import both_ahead, both_ranks, candidate_ahead, ranks
from .lint import lint
from .manifest import Manifest
from .measures import median_rank, recall_at, sum_recall
from .metrics import RetrievalMetric
from .protocols import PROTOCOLS, Protocol, get_protocol
from .report import protocol_card, recall_table
from .retrieval import Ranking, Retrieval, draw_candidates, evaluate, retrieve
from .statistics import compare, intervals, over_seeds

__all__ = [
    'PROTOCOLS',
    'Candidates',
    'Embeddings',
    'Manifest',
    'Protocol',
    'Ranking',
    'Retrieval',
    'RetrievalMetric',
    'both_ahead',
    'both_ranks',
    'candidate_ahead',
    'compare',
    'draw_candidates',
    'evaluate',
    'get_protocol',
    'intervals',
    'lint',
    'median_rank',
    'over_seeds',
    'protocol_card',
    'ranks',
    'recall_at',
    'recall_table',
    'retrieve',
    'sum_recall',
]
