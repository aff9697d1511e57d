"""Trials on Ray: placement, worker processes, interrupts.

Whatever of this package is imported first, what Ray reads of the environment is set before Ray is
imported. What a user has set stays.
"""

import os

# No usage reports.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# No csv/json/tensorboard files for each trial, no copies of Tune's own state, its plain output.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # `Interruption` counts them instead
# `ClusterCapacity` says how many trials are handed out. With one at a time, as Tune would have it,
# processes start one after another, and on a node that comes none does while trials end on others.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "10000")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
