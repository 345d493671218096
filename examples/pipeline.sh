#!/usr/bin/env bash
# `mvlm demo`, written out in verbs: every path is a default, so the bare verbs, one after another, are the pipeline.
# Run it in an empty folder. The first argument names a family (pool, nested_pool or query).
set -euo pipefail

mvlm data scenes --family "${1:-pool}"        # rows/ and train.yaml: pictures, questions, and the recipe for them
mvlm train                                    # run/: the nested-token model
mvlm label                                    # labels/: every row at every scale, once
mvlm fit-router                               # router/: how many tokens are enough
mvlm export                                   # bundle/: what a device needs, verified
mvlm report                                 # report/: what that is worth; open report/index.html
mvlm run rows/pictures/test/000/test-00000.png "what time of day is it?"
