"""What the two papers report, to be set beside: accuracy in points, by visual tokens. LLaVA sizes, real benchmarks."""

from __future__ import annotations

import numpy as np

# M3 (arXiv 2405.17430), table 2: LLaVA-NeXT, tokens per grid; TextVQA AI2D ChartQA DocVQA MMBench POPE SQA MMMU.
M3_SCALES = (576, 144, 36, 9, 1)
M3_SPECIALISTS = np.array([
    [64.53, 64.83, 59.28, 75.40, 66.58, 87.02, 72.29, 34.3],
    [62.16, 65.77, 55.28, 67.69, 67.78, 87.66, 72.15, 36.4],
    [58.15, 65.90, 45.40, 56.89, 67.01, 86.75, 71.87, 36.2],
    [50.95, 65.06, 37.76, 44.21, 65.29, 85.62, 72.37, 36.8],
    [38.39, 63.76, 28.96, 33.11, 61.43, 82.83, 72.32, 35.3],
])  # fmt: skip
M3_NESTED = np.array([
    [63.13, 66.71, 58.96, 72.61, 67.96, 87.20, 72.46, 34.0],
    [62.61, 68.07, 57.04, 66.48, 69.50, 87.67, 72.32, 36.1],
    [58.71, 67.36, 50.24, 55.94, 68.56, 87.29, 72.11, 36.8],
    [51.97, 66.77, 42.00, 43.52, 67.35, 86.17, 71.85, 35.2],
    [38.92, 64.57, 31.04, 31.63, 62.97, 83.38, 71.19, 34.8],
])  # fmt: skip
M3_ORACLE = np.array([70.51, 76.36, 70.76, 81.73, 74.35, 94.29, 76.07, 50.44])
M3_ORACLE_TOKENS = np.array([31.39, 11.54, 41.78, 64.09, 8.90, 6.08, 7.43, 22.85])
# Table 4, MMBench, nothing trained for it: nested, then what a model of the finest scale makes of fewer tokens.
M3_UNTRAINED = {
    "nested": (67.96, 69.50, 68.56, 67.35, 62.97), "average": (67.18, 61.68, 50.77, 45.45, 19.33),
    "spatial": (67.18, 65.81, 60.05, 45.45, 26.29), "sequential": (67.18, 60.14, 44.76, 31.96, 22.42),
}  # fmt: skip
# Tables 6, 7 and 8, TextVQA: finest and one token.
M3_TEXTVQA = {
    "nested": (63.13, 38.92), "spatial": (None, 29.91), "sequential": (None, 28.03),
    "frozen-language-model": (61.16, 19.72), "drawn": (62.25, 33.68),
}  # fmt: skip
# MQT (arXiv 2405.19315), figure 1 as digitised: the average of eleven benchmarks, and the same trained for one m.
MQT_SCALES = (256, 144, 64, 36, 16, 4)
MQT_NESTED = (59.4, 58.9, 58.1, 57.4, 56.0, 50.8)
MQT_SPECIALISTS = (58.8, 58.3, 57.9, 57.4, 55.8, 50.6)
# M3's table 9: a roofline of a V100, LLaVA-1.5-7B, 30 tokens of text.
M3_COST = {"tokens": (576, 144, 36, 9, 1), "tflops": (8.0, 2.2, 0.9, 0.5, 0.4), "ms": (58.1, 19.5, 18.0, 17.7, 17.6)}
