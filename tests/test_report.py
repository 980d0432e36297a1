"What the report promises whatever a run left behind: one file that asks for nothing, every section, and no hostile name taken for HTML."
import base64, io, json, re, zlib, struct
from html.parser import HTMLParser
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest
from malaria_fastai import files, report as rp
from malaria_fastai.evaluate import evaluate, examine, paired_difference
from malaria_fastai.extra.audit import ask_verdicts, review_list
from malaria_fastai.extra.contact_sheets import write_review
from malaria_fastai.extra.simulate import simulate_predictions
from malaria_fastai.report import NotARun, examine_run, warnings_of, write_report

POS = 'Parasitized'
NOTICE = 'For research and teaching. Not for diagnosis.'
SECTIONS = ['metrics','decisions','learning','losses','data','training','versions','command']
CLOSER = ['patients','thresholds','calibration','disputed','cells']
EVIL = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>&amp;$x^{$'

def png():
    "A picture of one white pixel."
    def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 8, 0, 0, 0, 0))+chunk(b'IDAT', zlib.compress(b'\0\xff'))+chunk(b'IEND', b'')

def make_run(folder, preds=None, draws=50, **more):
    "A run folder as training leaves it."
    preds = simulate_predictions(patients=24, cells=20) if preds is None else preds
    folder.mkdir(parents=True, exist_ok=True)
    blocks = {k: evaluate(preds[preds.split==k], POS, draws=draws) for k in ('valid','test') if (preds.split==k).any()}
    data = dict(name='invented', hash='ab'*32, n=len(preds), patients=24, labels=[POS,'Uninfected'], positive=POS, drawn=False, left_out={})
    found = dict(arch='resnet18', size=64, epochs=2, finetune_epochs=1, seed=42, split='patient', seconds=12.5, pretrained=False,
                 source='cells.zip', data=data, leakage=dict(test=dict(patient=0., photo=0.)), **blocks)
    (folder/'metrics.json').write_text(json.dumps(found | more))
    (folder/'environment.json').write_text(json.dumps(dict(versions=dict(python='3.11.9', torch='2.14'), commit='abc123', command=['malaria-fastai','train','my cells.zip'])))
    pd.DataFrame(dict(epoch=[0,1,0], stage=['head','head','all'], train_loss=[.6,.4,.3], valid_loss=[.5,.4,.35], accuracy=[.8,.85,.9],
                      time=['00:01']*3)).to_csv(folder/'history.csv', index=False)
    preds.to_csv(folder/'predictions.csv', index=False)
    (folder/'figures').mkdir(exist_ok=True)
    (folder/'figures'/'top_losses.png').write_bytes(png())
    return folder

class Page(HTMLParser):
    "Elements, attributes, text, and whether every element is closed where it should be."
    VOID = {'meta','img','br','link','input','hr'}
    def __init__(self, html):
        super().__init__()
        self.tags,self.attrs,self.ids,self.text,self.open,self.bad = [],[],[],[],[],[]
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attrs += [(tag,k,v) for k,v in attrs]
        self.ids += [v for k,v in attrs if k=='id']
        if tag not in self.VOID: self.open.append(tag)
    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID: self.open.pop()
    def handle_endtag(self, tag):
        if not self.open or self.open.pop()!=tag: self.bad.append(tag)
    def handle_data(self, data): self.text.append(data)

def read(path): return path.read_text(encoding='utf-8')

LOADS = {'src','href','srcset','action','formaction','poster','background','cite','ping','xlink:href','manifest','codebase','data'}

def assert_asks_for_nothing(html):
    page = Page(html)
    outside = [a for a in page.attrs if a[1] in LOADS and not (a[2] or '').startswith(('#','data:image/png;base64,'))]
    assert not outside, outside
    assert not {'script','iframe','object','embed','link','base','form','video','audio','source','foreignobject'} & set(page.tags)
    assert not [a for a in page.attrs if a[1].startswith('on') or (a[1]=='http-equiv' and a[2]!='Content-Security-Policy')]
    styles = ' '.join([v or '' for _,k,v in page.attrs if k in ('style','clip-path','fill','filter','mask')]+re.findall(r'<style.*?</style>', html, re.S))
    assert not [u for u in re.findall(r'url\(([^)]*)\)', styles) if not u.strip('\'" ').startswith('#')]
    assert '@import' not in styles
    assert ('meta','content',"default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attrs
    assert not page.open and not page.bad, (page.open, page.bad)
    return page

@pytest.fixture(scope='module')
def run(tmp_path_factory): return make_run(tmp_path_factory.mktemp('runs')/'one')

def test_the_checker_of_the_page_can_fail():
    for bad in ('<a href="http://x">', '<img src="//x/y.png">', '<p style="background:url(x.png)"></p>', '<script></script>', '<p><b></p>'):
        html = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"+bad
        with pytest.raises(AssertionError): assert_asks_for_nothing(html)

def test_report_holds_every_section_and_asks_for_nothing(run):
    path = write_report(run, draws=30)
    assert path==run/'report.html'
    page = assert_asks_for_nothing(read(path))
    assert [s for s in page.ids if s in SECTIONS]==SECTIONS
    text = ' '.join(page.text)
    assert text.count(NOTICE)==1
    assert "malaria-fastai train 'my cells.zip'" in text and 'resnet18' in text and 'abc123' in text and 'ab'*32 in text
    assert page.tags.count('svg')==4 and page.tags.count('img')==1
    assert base64.b64encode(png()).decode() in read(path)
    assert 'http://' not in read(path) and 'https://' not in read(path)

def test_numbers_and_intervals_are_those_of_the_file(run):
    text = ' '.join(Page(read(write_report(run, draws=30))).text)
    found = json.loads(read(run/'metrics.json'))
    for part in ('valid','test'):
        for m in rp.METRICS:
            assert f'{found[part][m]:.3f}' in text and rp._range(found[part][f'{m}_ci']) in text
    assert f"{found['test']['patients']} patients" in text

def test_examine_run_adds_the_closer_look_and_keeps_the_rest(tmp_path):
    run = make_run(tmp_path/'run')
    before = json.loads(read(run/'metrics.json'))
    page = assert_asks_for_nothing(read(examine_run(run, draws=50)))
    after = json.loads(read(run/'metrics.json'))
    assert {k: after[k] for k in before}==before and after['examined']['thresholds']
    assert [s for s in page.ids if s in CLOSER]==CLOSER
    text = ' '.join(page.text)
    assert 'no parasitaemia' in text and 'Delahunt' in text and 'Limit of detection' in text and 'Temperature' in text
    assert page.tags.count('svg')==4+2+1+2

def test_hostile_names_stay_text(tmp_path):
    preds = simulate_predictions(patients=12, cells=15)
    preds = preds.assign(path=EVIL+preds.path, patient=EVIL+preds.patient)
    run = make_run(tmp_path/'a"><b onclick=x>', preds, arch=EVIL, source=EVIL, split='folder', note=EVIL, examined=examine(preds, POS, draws=20))
    found = json.loads(read(run/'metrics.json'))
    found['data'] |= {'title': EVIL, 'left_out': {EVIL: 2}, EVIL: EVIL}
    found['examined']['refused'],found['examined']['thresholds'] = EVIL, None
    (run/'metrics.json').write_text(json.dumps(found))
    (run/'environment.json').write_text(json.dumps(dict(command=['train', EVIL], versions={EVIL: EVIL})))
    history = pd.read_csv(run/'history.csv').rename(columns=dict(accuracy=EVIL)).assign(stage=['a', EVIL, EVIL])
    history.to_csv(run/'history.csv', index=False)
    page = assert_asks_for_nothing(read(write_report(run, draws=10)))
    assert ' '.join(page.text).count('<script>alert("x")</script>')>6

def test_hostile_class_names_reach_the_figures_as_text(tmp_path):
    preds = simulate_predictions(patients=12, cells=15)
    for c in ('label','pred'): preds[c] = preds[c].replace({POS: EVIL, 'Uninfected': 'un<b>$'})
    folder = tmp_path/'run'
    folder.mkdir()
    (folder/'metrics.json').write_text(json.dumps(dict(data=dict(positive=EVIL), test=evaluate(preds[preds.split=='test'], EVIL, draws=10), examined=examine(preds, EVIL, draws=10))))
    preds.to_csv(folder/'predictions.csv', index=False)
    page = assert_asks_for_nothing(read(write_report(folder, draws=10)))
    assert any('<script>' in t for t in page.text)

def test_the_largest_losses_are_named(tmp_path):
    preds = simulate_predictions(patients=24, cells=20)
    preds = preds.assign(loss=-np.log(np.where(preds.label==POS, preds.p, 1-preds.p).clip(1e-9)))
    text = write_report(make_run(tmp_path/'run', preds), draws=20).read_text('utf-8')
    test = preds[preds.split=='test'].sort_values('loss', ascending=False)
    shown = re.findall('<tr><th>([^<]+)</th><td>[^<]+</td><td>[^<]+</td><td>[^<]+</td></tr>', text)
    assert shown[-9:] == [*test.path[:9]]

@pytest.mark.parametrize('missing', ['history.csv','predictions.csv','environment.json','figures/top_losses.png'])
def test_what_is_missing_is_said_to_be_missing(tmp_path, missing):
    run = make_run(tmp_path/'run')
    (run/missing).unlink()
    page = assert_asks_for_nothing(read(write_report(run, draws=10)))
    assert [s for s in page.ids if s in SECTIONS]==SECTIONS
    assert {'history.csv': 'no history.csv', 'predictions.csv': 'no predictions', 'environment.json': 'unknown',
            'figures/top_losses.png': 'no figures/top_losses.png'}[missing] in ' '.join(page.text)

@pytest.mark.parametrize('found', [{}, dict(arch='x'), dict(test=dict(accuracy=.5)), dict(valid=dict(accuracy=None, n=3)),
    dict(data=None, leakage=None, test=dict(accuracy=1., auc=None, auc_ci=None)), dict(data=dict(left_out=None, labels=None), leakage=dict(test=None))])
def test_a_sparse_metrics_file_still_gives_a_report(tmp_path, found):
    (tmp_path/'metrics.json').write_text(json.dumps(found))
    assert_asks_for_nothing(read(write_report(tmp_path)))

def test_three_classes_and_one_class_do_not_stop_it(tmp_path):
    three = make_run(tmp_path/'three')
    preds = pd.read_csv(three/'predictions.csv')
    preds.loc[preds.index[-9:], 'label'] = 'Platelet'
    preds.to_csv(three/'predictions.csv', index=False)
    assert 'two classes are needed' in read(write_report(three, draws=10))
    healthy = simulate_predictions(patients=12, cells=15)
    one = make_run(tmp_path/'one', healthy[healthy.label=='Uninfected'])
    text = read(examine_run(one, draws=10))
    assert_asks_for_nothing(text)
    assert 'there is no positive cell' in text and 'None was chosen' in text

def test_a_set_without_patients_says_so(tmp_path):
    preds = simulate_predictions(patients=12, cells=15).assign(patient=pd.NA)
    text = read(examine_run(make_run(tmp_path/'run', preds), draws=10))
    assert_asks_for_nothing(text)
    assert 'patients are unknown, so the intervals treat cells as independent' in text and 'by cells, patients unknown' in text

@pytest.mark.parametrize('found, says', [
    (dict(data=dict(drawn=True)), 'drawn by code'), (dict(split='random'), 'split is random'),
    (dict(leakage=dict(test=dict(patient=1., photo=.9998))), '99.98\xa0% have their photo'),
    (dict(test=dict(accuracy=1, patients=18)), 'only 18 patients'), (dict(valid=dict(accuracy=1)), 'no test part'),
    (dict(test=dict(accuracy=1, auc=1., auc_ci=[1.,1.])), 'no error was seen in auc'),
    (dict(data=dict(left_out={'Thumbs.db': 2})), 'Thumbs.db (2)')])
def test_each_warning(found, says):
    assert any(says in w for w in warnings_of(found))
    quiet = warnings_of(dict(split='patient', data=dict(drawn=False, left_out={}), leakage=dict(test=dict(patient=0., photo=0.)), test=dict(accuracy=1, patients=40)))
    assert quiet==[]

@pytest.mark.parametrize('text, says', [(None, 'no metrics.json'), ('{"a": ', 'cannot be read as JSON'), ('[1]', 'must hold a JSON object')])
def test_a_folder_that_is_no_run(tmp_path, text, says):
    if text is not None: (tmp_path/'metrics.json').write_text(text)
    with pytest.raises(NotARun, match=re.escape(says)): write_report(tmp_path)
    assert not (tmp_path/'report.html').exists()

def test_the_report_is_replaced_whole_or_not_at_all(run, monkeypatch):
    path = write_report(run, draws=10)
    before = read(path)
    def fail(*args): raise OSError('disk full')
    monkeypatch.setattr(files.os, 'replace', fail)
    with pytest.raises(OSError): write_report(run, draws=11)
    assert read(path)==before and [p.name for p in run.iterdir() if p.name.startswith('.')]==[]

def test_the_same_run_gives_the_same_page(run):
    assert read(write_report(run, draws=10))==read(write_report(run, draws=10))

def changes(kinds=('blur','stain_hue')):
    "A table of corruptions as a study makes it."
    rows = [dict(corruption='none', strength=0, n=480, threshold=.5, sensitivity_change=0., specificity_change=0.)]
    return pd.DataFrame(rows+[dict(corruption=k, strength=s, n=480, threshold=.5, sensitivity_change=-.02*s*i, specificity_change=.01*s)
                              for i,k in enumerate(kinds) for s in range(1, 6)])

def test_trials_have_their_sections_where_they_were_made(tmp_path):
    trials = ['folds','shortcut','robustness','tta','review']
    preds = simulate_predictions(patients=24, cells=20)
    plain = Page(read(write_report(make_run(tmp_path/'plain'), draws=10)))
    assert not [s for s in plain.ids if s in trials]
    preds = preds.assign(split='test')
    block = evaluate(preds, POS, draws=20)
    more = dict(by_fold=[dict(block, fold=k) for k in range(5)], over_folds=dict(accuracy=[.9,.01], auc=None), colour_floor=block,
        shortcut=dict(frame=dict(auc=.52, auc_ci=[.45,.6], n=480), outline=dict(auc=.7, auc_ci=[.6,.8], n=480), blanked=dict(auc=None, auc_ci=None, n=3)),
        tta=dict(plain=block, averaged=block, difference=paired_difference(preds, preds, POS, draws=20).T.to_dict()))
    run = make_run(tmp_path/'run', preds, **more)
    changes().to_csv(run/'robustness.csv', index=False)
    review = review_list(preds.drop(columns='split').assign(fold=pd.factorize(preds.patient)[0]%5, path=EVIL+preds.path), POS)
    review.to_csv(run/'review.csv', index=False)
    ask_verdicts(review, review.assign(sha256='0'*64), 3).assign(verdict=['wrong','wrong','']).to_csv(run/'verdicts.csv', index=False)
    page = assert_asks_for_nothing(read(write_report(run, draws=10)))
    assert [s for s in page.ids if s in trials]==trials
    text = ' '.join(page.text)
    for says in ('AUC 0.520 (0.450 to 0.600) on 480 cells, not to be told from chance', 'something other than the parasite speaks here',
                 'AUC undefined', '−10.0 points, stain hue at strength 5', 'accuracy 0.900 ± 0.010', 'wrong 2, not judged yet 1',
                 'which may be chance between patients', f'{review.suspected.sum()} are suspected'):
        assert says in text, says

def test_review_is_written_and_verdicts_outlive_it(tmp_path):
    from PIL import Image
    rng = np.random.default_rng(0)
    preds = simulate_predictions(patients=6, cells=5).drop(columns='split')
    for p in preds.path:
        (tmp_path/'set'/p).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9,9,3), np.uint8)).save(tmp_path/'set'/p)
    from hashlib import sha256
    cells = preds[['path']].assign(sha256=[sha256((tmp_path/'set'/p).read_bytes()).hexdigest() for p in preds.path])
    review = review_list(preds.assign(fold=pd.factorize(preds.patient)[0]%3), POS)
    out = write_review(tmp_path/'review', tmp_path/'set', review, cells, k=7, a_sheet=4)
    assert sorted(p.name for p in out.iterdir())==['review.csv','sheet_001.png','sheet_002.png','verdicts.csv']
    t = pd.read_csv(out/'verdicts.csv', dtype=str, keep_default_na=False)
    assert t.path.tolist()==review.path[:7].tolist()
    t.loc[2, 'verdict'] = 'unsure'
    t.to_csv(out/'verdicts.csv', index=False)
    write_review(out, tmp_path/'set', review.iloc[::-1], cells, k=2)
    again = pd.read_csv(out/'verdicts.csv', dtype=str, keep_default_na=False)
    assert len(again)==9 and again.verdict.tolist()==['','','unsure']+['']*6
    with pytest.raises(ValueError, match='another picture'): write_review(out, tmp_path/'set', review, cells.assign(sha256='0'*64))

def test_robustness_shows_each_number_and_a_sign(tmp_path):
    said = []
    for rate in ('sensitivity','specificity'):
        ax = rp.plot_robustness(changes(), rate)
        said += [t.get_text() for t in ax.texts]
        assert ax.get_title()==f'{rate}, points' and len(ax.texts)==10
        assert [t.get_text() for t in ax.get_yticklabels()]==['blur','stain hue'] and '480 pictures' in ax.get_xlabel()
        plt.close(ax.figure)
    assert said.count('0')==5 and '−10' in said and '+5' in said

def test_writing_a_report_leaves_no_figure_open_and_no_setting_changed(run):
    open_before,rc = plt.get_fignums(), dict(plt.rcParams)
    write_report(run, draws=10)
    assert plt.get_fignums()==open_before and dict(plt.rcParams)==rc

@pytest.mark.parametrize('plot', ['plot_confusion','plot_roc','plot_pr','plot_patients','plot_reliability','plot_coverage'])
def test_every_figure_renders_with_labelled_axes(plot):
    preds = simulate_predictions(patients=12, cells=15).assign(split='test')
    for t in (preds, preds[preds.label=='Uninfected']):
        ax = getattr(rp, plot)(t, POS)
        assert ax.get_xlabel() and (ax.get_ylabel() or plot=='plot_patients')
        ax.figure.savefig(io.BytesIO(), format='png')
        plt.close(ax.figure)

def drawn_history(history): return [rp._plot_epochs(history, *curve) for _,*curve in rp._curves(history)]

def test_history_of_any_shape_renders():
    for h in (dict(train_loss=[1.]), dict(train_loss=[1.,.5], valid_loss=[np.nan,.4], accuracy=[np.nan]*2), dict(epoch=[0], accuracy=[.5], f1=[.4])):
        axs = drawn_history(pd.DataFrame(h))
        assert axs
        for ax in axs: ax.figure.savefig(io.BytesIO(), format='png')
        plt.close('all')

def test_report_imports_no_torch():
    import subprocess, sys
    code = "import sys, malaria_fastai.report; print([m for m in ('torch','fastai','sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'

@pytest.mark.parametrize('lo,hi,said', [(.01, .03, '(+0.0100 to +0.0300), more than chance'), (-.03, -.01, '(−0.0300 to −0.0100), more than chance'),
    (-.01, .03, '(−0.0100 to +0.0300), which may be chance'), (None, None, '')])
def test_a_difference_is_chance_where_its_interval_holds_zero(tmp_path, lo, hi, said):
    gain = dict(difference=.02 if hi is None else (lo+hi)/2, lo=lo, hi=hi)
    tta = dict(plain=dict(n=3), averaged=dict(n=3), difference=dict(auc=gain))
    (tmp_path/'metrics.json').write_text(json.dumps(dict(tta=tta)))
    line = next(t for t in Page(read(write_report(tmp_path))).text if t.startswith('AUC: '))
    assert said in line and ('chance' in line)==bool(said)

# --- what is said, and of what

CELLS_ONLY = ['parasit', 'red cell', 'has no up', 'healthy', 'Limit of detection', 'black frame', 'infected']

@pytest.mark.parametrize('labels', [('PNEUMONIA','NORMAL'), pytest.param(('cat','dog'), marks=pytest.mark.slow), pytest.param(('Parasitized','Healthy'), marks=pytest.mark.slow)])
def test_of_other_pictures_nothing_is_said_that_holds_for_cells(tmp_path, labels):
    "The same run under other class names: no word of the page or its figures is about cells."
    preds = simulate_predictions(patients=24, cells=20)
    for column in ('label','pred'): preds[column] = preds[column].replace(dict(zip((POS,'Uninfected'), labels)))
    preds['path'] = [f'{i}.png' for i in range(len(preds))]
    blocks = {part: evaluate(preds[preds.split==part], labels[0], draws=20) for part in ('valid','test')}
    block = blocks['test']
    trials = dict(shortcut=dict(outline=dict(auc=.7, auc_ci=[.6,.8], n=480)), colour_floor=block, by_fold=[dict(block, fold=0)], over_folds=dict(accuracy=[.9,.01]),
        tta=dict(views=2, plain=block, averaged=block, difference={}))
    data = dict(labels=dict.fromkeys(labels, 9), positive=labels[0])
    run = make_run_of(tmp_path/'run', preds, dict(data=data, **blocks, **trials, examined=examine(preds, labels[0], draws=20)))
    changes().to_csv(run/'robustness.csv', index=False)
    text = ' '.join(Page(read(write_report(run, draws=10))).text)
    text = text[text.index('Read this first'):]
    for label in labels: text = text.replace(label, '')
    said = [word for word in CELLS_ONLY if word.lower() in text.lower()]
    assert not said and not re.search(r'\bcells?\b', text), (said, re.findall(r'[^.]{30}\bcells?\b[^.]{30}', text))
    assert 'Two views' in text and 'mirrored left to right' in text and 'The test pictures with the largest loss' not in text

def make_run_of(folder, preds, found):
    folder.mkdir()
    (folder/'metrics.json').write_text(json.dumps(found))
    preds.to_csv(folder/'predictions.csv', index=False)
    return folder

def test_the_words_of_cells_are_there_for_cells(tmp_path):
    preds = simulate_predictions(patients=80, cells=20, spread=.3)
    run = make_run(tmp_path/'run', preds)
    (run/'metrics.json').write_text(json.dumps(json.loads(read(run/'metrics.json')) | dict(tta=dict(plain=dict(n=3), averaged=dict(n=3), difference={}))))
    text = ' '.join(Page(read(examine_run(run, draws=30))).text)
    for words in ('A cell has no up', 'Eight views', 'no parasitaemia', 'healthy controls', 'LoD =', 'The test cells with the largest loss'): assert words in text, words

def test_no_limit_and_no_zero_from_few_controls(tmp_path):
    "31 cells of four controls without a false alarm: what cannot be said is not said."
    preds = simulate_predictions(patients=24, cells=20)
    test = preds[preds.split=='test']
    preds.loc[test.index[~test.patient.str.startswith('P')], 'p'] = .01
    preds['pred'] = np.where(preds.p>=.5, POS, 'Uninfected')
    text = ' '.join(' '.join(Page(read(examine_run(make_run(tmp_path/'run', preds), draws=30))).text).split())
    assert 'Limit of detection: cannot be said from so few controls, none of whom showed a false alarm' in text
    alarms = re.search(r'about 0 false alarms; these controls speak for 0 to ([\d,]+)', text)
    assert int(alarms[1].replace(',', ''))>500

def test_both_lines_stand_beside_each_other_everywhere(tmp_path):
    run = make_run(tmp_path/'run')
    found = json.loads(read(run/'metrics.json'))
    for part in ('valid','test'):
        rest = found[part]['undisputed']
        assert rest and rest['n']<found[part]['n']
    page = Page(read(write_report(run, draws=10)))
    text = ' '.join(page.text)
    for part in ('valid','test'):
        rest = found[part]['undisputed']
        assert f"{rest['n']} cells" in text and f'{part}, undisputed' in text
        for m in rp.METRICS: assert f'{rest[m]:.3f}' in text and rp._range(rest[f'{m}_ci']) in text
    known = found['test']['undisputed']
    assert f"undisputed: {known['accuracy']:.3f}, {rp._range(known['accuracy_ci'])}" in text
    for part in ('valid','test'): del found[part]['undisputed'] # as an older version wrote it
    (run/'metrics.json').write_text(json.dumps(found))
    assert 'undisputed' not in read(write_report(run, draws=10)).lower()

def test_epochs_are_counted_from_0_and_the_training_names_its_rate(tmp_path):
    run = make_run(tmp_path/'run', lr=.003, finetune_lr=[3e-5, 3e-4])
    axs = drawn_history(pd.read_csv(run/'history.csv'))
    for ax in axs:
        for line in ax.get_lines()[:1]: assert line.get_xdata().tolist()==[0,1,2]
    plt.close('all')
    rows = ' '.join(Page(read(write_report(run, draws=10))).text).split('The training')[1]
    assert re.search(r'lr\s+0.003', rows) and re.search(r'finetune lr\s+3e-05, 0.0003', rows)

def test_cells_without_a_patient_are_counted_in_the_warnings(tmp_path):
    preds = simulate_predictions(patients=24, cells=20)
    first = preds.patient[preds.split=='test'].iloc[0]
    preds['patient'] = preds.patient.where(preds.patient!=first)
    page = Page(read(examine_run(make_run(tmp_path/'run', preds), draws=20)))
    text = ' '.join(page.text)
    assert 'test: 20 cells name no patient' in text and 'patients are unknown, so' not in text and page.tags.count('svg')==9
