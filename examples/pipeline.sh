#!/usr/bin/env bash
# `mvlm demo`, written out in verbs: every path is a default, so the bare verbs, one after another, are the pipeline.
# Run it in an empty folder. The first argument names a family (pool or query).
set -euo pipefail

mvlm data scenes --family "${1:-pool}"        # rows/ and train.yaml: pictures, questions, and the recipe for them
mvlm data check                               # every fault of the data, before a run is spent on it
mvlm train                                    # run/: the nested-token model
mvlm label --scales 1,4,9,36,144              # labels/: every row at every scale, once
mvlm fit-router                               # router/: how many tokens are enough
mvlm evaluate                                 # report/: what that is worth; open report/index.html
mvlm export --scales 9,36,144                 # bundle/: what a device needs, verified
mvlm run rows/pictures/test/000/test-00000.png "what time of day is it?"
