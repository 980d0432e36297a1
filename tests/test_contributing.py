"""What a contributor is told holds: the checklist names rules that exist, the ten lines name commands that exist, the changelog keeps its form.
And what is published was tested."""
import re
from importlib.metadata import entry_points
import pytest
from test_repo import ROOT, RULES, settings

def read(name): return (ROOT/name).read_text(encoding='utf-8')

def checklist_faults(text, rules):
    "A checklist of five points, each enforced by rules that exist."
    points = re.findall(r'^- \[ \] (.*)$', text, re.M)
    if len(points)!=5: yield f'{len(points)} points'
    for o in points:
        named = re.findall(r'`(\w+)`', (re.search(r'\(([^()]*)\)$', o) or [''])[0])
        if not named: yield f'enforced by nothing: {o}'
        yield from (f'no such rule: {n}' for n in named if n not in rules)

def lines_faults(text, commands):
    "Ten numbered lines, and every command in them exists."
    numbers = re.findall(r'^(\d+)[.] ', text, re.M)
    if numbers!=[str(i) for i in range(1, 11)]: yield f'lines {numbers}'
    for o in re.findall(r'(?<=`)(?:make [a-z]+|nbdev-[a-z-]+)', text):
        if o not in commands: yield f'no such command: {o}'
    if 'nbdev-install-hooks' not in text: yield 'says nothing of nbdev-install-hooks'

KINDS = ('Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security')

def changelog_faults(text, version):
    "The form of keepachangelog.com: Unreleased first, then versions with dates, in falling order; known kinds of changes, none of them empty."
    heads = re.findall(r'^## (.*)$', text, re.M)
    if not text.startswith('# Changelog\n'): yield 'no title'
    if heads[:1]!=['[Unreleased]']: yield 'does not begin with [Unreleased]'
    released = [re.fullmatch(r'\[(\d+)[.](\d+)[.](\d+)\] - \d{4}-\d\d-\d\d', o) for o in heads[1:]]
    if not all(released): yield f'a version without its date: {heads}'
    numbers = [tuple(map(int, o.groups())) for o in released if o]
    if numbers!=sorted(numbers, reverse=True): yield 'versions are out of order'
    for section in re.split(r'^## ', text, flags=re.M)[1:]:
        for kind,body in re.findall(r'^### (.*)\n((?:(?!^#).*\n?)*)', section, re.M):
            if kind not in KINDS: yield f'no such kind: {kind}'
            if not re.search(r'^- \S', body, re.M): yield f'nothing below {kind}'
    if version not in text: yield f'does not know {version}'

def commands():
    made = {f'make {o}' for o in re.findall(r'^([a-z]+):', read('Makefile'), re.M)}
    return made | {o.name for o in entry_points(group='console_scripts')}

def test_each_point_of_the_checklist_is_enforced():
    text,rules = read('.github/PULL_REQUEST_TEMPLATE.md'),{o.__name__ for o in RULES}
    assert [*checklist_faults(text, rules)]==[]
    assert [*checklist_faults(text.replace('export_in_sync', 'export_is_fine'), rules)]==['no such rule: export_is_fine']
    assert [*checklist_faults(text+'- [ ] Be nice.\n', rules)]==['6 points', 'enforced by nothing: Be nice.']

def test_every_command_of_the_ten_lines_exists():
    text = read('CONTRIBUTING.md')
    assert [*lines_faults(text, commands())]==[]
    assert [*lines_faults(text.replace('make docs', 'make site'), commands())]==['no such command: make site']
    assert [*lines_faults(text.replace('nbdev-install-hooks', 'hooks'), commands())]==['says nothing of nbdev-install-hooks']
    assert [*lines_faults(text+'11. More.\n', commands())]

LOG_FAULTS = {'no title': ('# Changelog\n', '# News\n'), 'does not begin': ('## [Unreleased]', '## [0.0.9] - 2026-01-01'), 'no such kind': ('### Added', '### New'),
              'a version without': ('## [Unreleased]', '## [Unreleased]\n\n## 9.9'), 'nothing below': ('### Added\n', '### Added\n\n### Fixed\n'),
              'does not know': ('0.1.0', '0.2.0')}

@pytest.mark.parametrize('said', [None, *LOG_FAULTS])
def test_the_changelog_keeps_its_form(said):
    text = read('CHANGELOG.md')
    if said: text = text.replace(*LOG_FAULTS[said])
    found = [*changelog_faults(text, settings(ROOT)['version'])]
    assert any(o.startswith(said) for o in found) if said else found==[], found

def publishing_faults(site, test):
    "The workflow `site` publishes the commit that passed the workflow `test` on main, and publishes all of it."
    name = re.search(r'^name: (.+)$', test, re.M)[1]
    triggers = re.search(r'^on:\n((?:  .*\n)+)', site, re.M)[1]
    if f'  workflow_run:\n    workflows: [{name}]\n    branches: [main]\n' not in triggers: yield 'does not wait for the tests'
    if re.search(r'^  (push|pull_request\w*|schedule):', triggers, re.M): yield 'runs without the tests'
    for o in ("conclusion == 'success'", "event == 'push'"):
        if f'github.event.workflow_run.{o}' not in site: yield f'does not ask for {o}'
    if 'ref: ${{ github.event.workflow_run.head_sha || github.sha }}' not in site: yield 'builds another commit'
    if not re.search(r'run: make docs\n +env:\n +WHOLE_SITE: 1\n', site): yield 'may publish a part'

SITE_FAULTS = {'does not wait': ('workflows: [test]', 'workflows: [tests]'), 'runs without': ('  workflow_dispatch:\n', '  workflow_dispatch:\n  push:\n'),
               'does not ask for conclusion': ("'success'", "'failure'"), 'does not ask for event': ("event == 'push'", "event != 'x'"),
               'builds another': ('workflow_run.head_sha', 'x'), 'may publish': ('WHOLE_SITE: 1', 'WHOLE_SITE: 0')}

@pytest.mark.parametrize('said', [None, *SITE_FAULTS])
def test_only_what_was_tested_is_published(said):
    text = read('.github/workflows/site.yml')
    if said: text = text.replace(*SITE_FAULTS[said])
    found = [*publishing_faults(text, read('.github/workflows/test.yml'))]
    assert any(o.startswith(said) for o in found) if said else found==[], found
    assert "os.environ.get('WHOLE_SITE')" in read('tools/make_docs.py')
