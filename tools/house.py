#!/usr/bin/env python3
"""How large, how dense and how scattered the library is. In the repository's root: python tools/house.py

A size is a number of syntax nodes (expressions and statements), which no formatting changes. `tests/test_repo.py` holds a bound
for each measure. Python's standard library is enough."""
import ast,json,re
from collections import Counter,defaultdict
from pathlib import Path
from statistics import mean

PKG = 'malaria_fastai'
V1_NAMES = Path(__file__).resolve().parent/'v1_star_names.txt' # what fastai 1.0.61 brought: the old vocabulary is not counted as ours
TERMS = ('checkpoint', 'data leakage', 'early stopping', 'fine-tun', 'hyperparameter', 'learning rate finder', 'Mahalanobis', 'memory-mapped',
         'mixed precision', 'out-of-distribution', 'overfit', 'path traversal', 'test-time augmentation', 'throughput', 'zip bomb')
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITION = (*FUNCTION, ast.ClassDef)

# ---- reading

def read(path): return path.read_text(encoding='utf-8')
def old_names(): return {line for line in read(V1_NAMES).splitlines() if line and not line.startswith('#')}
def is_private(name): return name.startswith('_') and not name.startswith('__')

def modules(root):
    "The exported modules: name inside the package, source and syntax tree."
    for path in sorted((root/PKG).rglob('*.py')):
        if path.name in ('__init__.py', '_modidx.py'): continue
        source = read(path)
        yield path.relative_to(root/PKG).as_posix(), source, ast.parse(source)

def public_names(tree):
    "What a module lists in `__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '')=='__all__': return [item.value for item in node.value.elts]
    return []

def notebook_cells(path, kind='code'):
    cells = json.loads(read(path))['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type']==kind]

def api_notebooks(root):
    found = sorted((root/'nbs').rglob('*.ipynb'))
    return [path for path in found if not {'tutorials', '.ipynb_checkpoints'} & {*path.parts}]

def lessons(root):
    return [path for path in [*sorted((root/'nbs/tutorials').glob('*.ipynb')), root/'nbs/index.ipynb'] if path.exists()]

def exported_cells(root):
    for path in api_notebooks(root):
        yield from (source for source in notebook_cells(path) if re.search(r'^#\s*\|\s*export', source, re.M))

def top_definitions(source):
    "The functions and classes at the top of a notebook's cell."
    try: tree = ast.parse(re.sub(r'^\s*[%!].*$', '', source, flags=re.M))
    except SyntaxError: return []
    return [node for node in tree.body if isinstance(node, DEFINITION)]

# ---- lines

def span(first, last): return set(range(first, last+1))

def not_code(tree):
    "Numbers of the lines that hold an import, a signature, a docstring or `__all__`."
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)): lines |= span(node.lineno, node.end_lineno)
        if isinstance(node, DEFINITION): lines |= span(node.lineno, node.body[0].lineno-1)
        if isinstance(node, (*DEFINITION, ast.Module)) and ast.get_docstring(node) is not None:
            lines |= span(node.body[0].lineno, node.body[0].end_lineno)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '')=='__all__': lines |= span(node.lineno, node.end_lineno)
    return lines

def code_lines(source, tree):
    left_out = not_code(tree)
    numbered = enumerate(source.splitlines(), 1)
    return [line for i,line in numbered if i not in left_out and line.strip() and not line.strip().startswith('#')]

def signature_lines(tree): return sum(max(0, node.body[0].lineno-node.lineno) for node in ast.walk(tree) if isinstance(node, FUNCTION))

def body_lines(function):
    "Lines of a function's body, its docstring left out."
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno-body[0].lineno+1 if body else 0

# ---- measures: the root of a repository -> values by name

def size(root):
    nodes,width,lines,over = {},[],0,0
    for name,source,tree in modules(root):
        nodes[name] = sum(isinstance(node, (ast.expr, ast.stmt)) for node in ast.walk(tree))
        code = code_lines(source, tree)
        width += [len(line) for line in code]
        lines += len(code)+signature_lines(tree)
        over += sum(len(line)>120 for line in source.splitlines())
    core = sum(n for name,n in nodes.items() if not name.startswith('extra'))
    return dict(nodes=sum(nodes.values()), core_nodes=core, over_120=over, mean_code_line=round(mean(width or [0]), 1),
                nodes_per_line=round(sum(nodes.values())/max(1, lines), 1))

def star_names(root, owners):
    "Of the library's own names: those that `from malaria_fastai.all import *` brings."
    path = root/PKG/'all.py'
    if not path.exists(): return set()
    tree = ast.parse(read(path))
    brought = {*public_names(tree)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level: continue
        for alias in node.names:
            if alias.name!='*': brought.add(alias.asname or alias.name)
            else: brought |= {name for name,homes in owners.items() if f"{node.module.replace('.', '/')}.py" in homes}
    return brought & {*owners}

def names(root):
    owners,private_homes = defaultdict(set),defaultdict(set)
    exceptions = 0
    for name,_,tree in modules(root):
        for public in public_names(tree): owners[public].add(name)
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            if is_private(node.name): private_homes[node.name].add(name)
            bases = ' '.join(map(ast.unparse, getattr(node, 'bases', [])))
            exceptions += 'Error' in bases or 'Exception' in bases
    ours = {*owners}-old_names()
    return dict(public_names=len(ours), star_names=len(star_names(root, owners)-old_names()),
                private_in_two_modules=sum(len(homes)>1 for homes in private_homes.values()),
                public_with_two_owners=sum(len(homes)>1 for homes in owners.values()), exceptions=exceptions)

def helpers(root):
    once,unsaid = 0,0
    for _,_,tree in modules(root):
        used = Counter(getattr(node, 'id', getattr(node, 'attr', None)) for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute)))
        private = [node for node in ast.walk(tree) if isinstance(node, FUNCTION) and is_private(node.name)]
        once += sum(used[name]<=1 for name in {node.name for node in private})
        unsaid += sum(body_lines(node)>3 and ast.get_docstring(node) is None for node in private)
    return dict(helpers_called_once=once, undocumented_helpers=unsaid)

def cells(root):
    counts,lines = [0],[0]
    for source in exported_cells(root):
        tops = top_definitions(source)
        if tops: counts.append(len(tops))
        if any(isinstance(node, ast.ClassDef) for node in tops): continue # a class cannot be cut
        lines.append(sum(bool(line.strip()) and not line.lstrip().startswith('#|') for line in source.splitlines()))
    wide = [line for path in lessons(root) for source in notebook_cells(path) for line in source.splitlines() if len(line)>88]
    return dict(definitions_per_cell=round(mean(counts[1:] or counts), 2), largest_cell=max(lines), lesson_lines_over_88=len(wide))

def words(root):
    texts = [source for _,source,_ in modules(root)]
    for path in [*api_notebooks(root), *lessons(root)]: texts += notebook_cells(path, 'markdown')
    prose = ' '.join(texts).lower()
    return dict(terms_missing=sum(term.lower() not in prose for term in TERMS))

def measure(root):
    "Every measure of the library below `root`; the smaller, the better."
    return size(root) | names(root) | helpers(root) | cells(root) | words(root)

def complaints(found, bounds):
    "What is worse than its bound, and what is better and still has the old bound."
    for name in sorted({*found, *bounds}):
        if name not in bounds: yield f'{name} is {found[name]:,} and has no bound'
        elif name not in found: yield f'{name} has a bound and is not measured'
        elif found[name]>bounds[name]: yield f'{name} is {found[name]:,}: the bound is {bounds[name]:,}, and it only tightens'
        elif found[name]<bounds[name]: yield f'{name} is better than its bound of {bounds[name]:,}: tighten the bound to {found[name]:,}'

if __name__=='__main__':
    for name,value in measure(Path.cwd()).items(): print(f'{name:<24}{value:>10,}')
