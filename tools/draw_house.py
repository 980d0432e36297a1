"""Draw which module imports which, from the code: nbs/images/house.svg. In the repository's root: python tools/draw_house.py

An arrow leads from a module to one that uses it. Arrows that follow from others are left out: if `a` uses `b` and `b` uses `c`,
there is none from `c` to `a`."""
import ast
from html import escape
from pathlib import Path
from statistics import mean
import house
import networkx as nx

ROOT = Path(__file__).resolve().parent.parent
BOX = 124,26          # width and height of a room, pixels
STEP = 140,58         # from room to room, and from floor to floor
STYLE = ('<style>text {font: 13px system-ui, sans-serif; fill: #12222f; text-anchor: middle} rect {fill: #dbe7f1; stroke: #6b7f90} '
         '.extra rect {fill: #f5e6cf; stroke: #a98244} path {fill: none; stroke: #7d8d9a; stroke-width: 1.2; marker-end: url(#tip)}</style>'
         '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
         '<polygon points="0 1, 8 4, 0 7" fill="#7d8d9a"/></marker>')

def imported(tree):
    "The modules of this package that a syntax tree imports, at its top or inside a function."
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom): continue
        home = (node.module or '').removeprefix(house.PKG).lstrip('.')
        if not node.level and not (node.module or '').startswith(house.PKG): continue
        if home: yield home
        yield from ('.'.join(filter(None, [home, alias.name])) for alias in node.names)

def rooms(root):
    "The graph of modules: an edge from each to those that import it. `all` is left out: it imports every one."
    sources = {name[:-3].replace('/', '.'): tree for name,_,tree in house.modules(root)}
    graph = nx.DiGraph()
    for name,tree in sources.items():
        if name=='all': continue
        graph.add_node(name)
        graph.add_edges_from((other, name) for other in imported(tree) if other in sources)
    return graph

def places(graph):
    "Where the middle of each room is: every room stands below the lowest that uses it, near the middle of those it uses."
    floors = [sorted(floor) for floor in nx.topological_generations(graph.reverse())][::-1]
    width = max(map(len, floors))*STEP[0]
    at = {}
    for i,floor in enumerate(floors):
        wanted = {room: mean([at[below][0] for below in graph.predecessors(room)] or [width/2]) for room in floor}
        left = (width-(len(floor)-1)*STEP[0])/2
        for k,room in enumerate(sorted(floor, key=wanted.get)):
            at[room] = left+k*STEP[0],(len(floors)-i-.5)*STEP[1]
    return at,(width, len(floors)*STEP[1])

def arrow(start, end):
    "A curve from the upper side of one room to the lower side of another."
    (x,y),(to_x,to_y) = (start[0], start[1]-BOX[1]/2),(end[0], end[1]+BOX[1]/2)
    bend = (y-to_y)/2
    return f'<path d="M{x:.0f},{y:.0f} C{x:.0f},{y-bend:.0f} {to_x:.0f},{to_y+bend:.0f} {to_x:.0f},{to_y:.0f}"/>'

def box(name, middle):
    x,y = middle[0]-BOX[0]/2,middle[1]-BOX[1]/2
    kind = ' class="extra"' if name.startswith('extra.') else ''
    label = escape(name.removeprefix('extra.').replace('_', ' '))
    return f'<g{kind}><rect x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5"/><text x="{middle[0]:.0f}" y="{middle[1]+4:.0f}">{label}</text></g>'

def drawing(root):
    "The picture as SVG."
    graph = rooms(root)
    at,(width,height) = places(graph)
    arrows = [arrow(at[lower], at[upper]) for lower,upper in sorted(nx.transitive_reduction(graph).edges)]
    boxes = [box(name, at[name]) for name in sorted(at)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
    return '\n'.join([head, '<title>Which module uses which</title>', STYLE, *arrows, *boxes, '</svg>', ''])

if __name__=='__main__':
    path = ROOT/'nbs/images/house.svg'
    path.write_text(drawing(ROOT), encoding='utf-8')
    print(f'wrote {path.relative_to(ROOT)}')
