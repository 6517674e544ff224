"""Tracks trials FIRST.. for ever and prints each number once the tracker has taken it; made to be killed."""

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from dynosim.tracking import MLflowTracker
from report.fake_study import make_study, make_trial

run_dir, uri, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
study = replace(make_study(0), trials=[make_trial(number) for number in range(first)])
tracker = MLflowTracker(uri, run_dir)
tracker.study_started(study)
while True:
    trial = make_trial(len(study.trials))
    study.trials.append(trial)
    tracker.trial_finished(study, trial)
    print(trial.number, flush=True)
    time.sleep(0.2)
