"""What the page of extra.crossval cannot say: several runs judged as one, against numbers computed here, and what is refused."""
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from malaria_fastai.extra.crossval import cross_validate, mean_of_runs
from test_command import refused, run # noqa: F401


def test_a_single_run_is_no_cross_validation_to_go_on_with(run, sample_root, tmp_path):
    "A folder that holds one run is left as it is, with and without resume."
    other = Path(shutil.copytree(run, tmp_path/'other'))
    before = (other/'metrics.json').read_bytes()
    for resume in (False, True):
        with pytest.raises((FileExistsError, ValueError)): cross_validate(sample_root, other, resume=resume)
    assert (other/'metrics.json').read_bytes() == before and not (other/'fold0').exists()


def test_several_runs_are_judged_as_one(run, tmp_path, capsys):
    "The mean of two runs: their p is the mean, and the numbers are those of the mean. Without a folder of its own, or on other cells, it is refused."
    other = Path(shutil.copytree(run, tmp_path/'other'))
    preds = pd.read_csv(run/'predictions.csv')
    preds.assign(p=preds.p**2, pred=np.where(preds.p**2 >= .5, 'Parasitized', 'Uninfected')).to_csv(other/'predictions.csv', index=False)
    mean_of_runs([run, other], tmp_path/'mean', draws=10)
    mean = pd.read_csv(tmp_path/'mean'/'predictions.csv').set_index('path').p
    assert np.allclose(mean[preds.path], (preds.p + preds.p**2)/2)
    found = json.loads((tmp_path/'mean'/'metrics.json').read_text())
    test = pd.read_csv(tmp_path/'mean'/'predictions.csv').query('split == "test"')
    assert found['test']['accuracy'] == pytest.approx(((test.p >= .5) == (test.label == 'Parasitized')).mean()) and found['runs'] == ['run', 'other']
    assert 'folder of its own' in refused(capsys, 'evaluate', run, other)
    preds[1:].to_csv(other/'predictions.csv', index=False)
    refused(capsys, 'evaluate', run, other, '--out', tmp_path/'none')
    assert not (tmp_path/'none'/'metrics.json').exists()
