"""Run trials on Ray: placement, worker processes, interrupts.

Importing any module of this package sets Ray's environment variables before Ray is imported.
Variables that the user has set are kept.
"""

import os

# Send no usage reports.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Write no csv, json or tensorboard files per trial and no copies of Tune's state; plain output.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # `Interruption` handles them
# `ClusterCapacity` limits the number of trials. With Tune's default of one pending trial, processes
# start one after another, and none starts on a new node while trials keep ending on other nodes.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "10000")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
