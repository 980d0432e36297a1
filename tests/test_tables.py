"One function reads every table: any separator, encoding and type of ids, and nothing of it is guessed or lost."
import csv, gzip, io
import numpy as np, pandas as pd, pytest
from hypothesis import assume, given, strategies as st
from properties import cases

from malaria_fastai.files import read_table

ENCODINGS = {'utf-8': b'', 'utf-8-sig': b'', 'utf-16': b'', 'utf-16-le': b'', 'utf-16-be': b''}
IDS = st.one_of(
    st.sampled_from(['007', '7', '7.0', '1e3', '0012', 'NA', 'N/A', 'nan', 'None', '<NA>', 'null', 'inf', '-', ' a', 'TRUE', '1_0', '2020-01-01', '']),
    st.text(st.characters(exclude_categories=['Cs', 'Cc'], exclude_characters='\ufeff'), max_size=8), st.integers(0, 10**20).map(str))

def written(rows, separator=',', encoding='utf-8', quote=csv.QUOTE_MINIMAL, end='\n'):
    "The bytes of a table, as a program would write it."
    out = io.StringIO(newline='')
    csv.writer(out, delimiter=separator, quoting=quote, lineterminator=end).writerows(rows)
    return out.getvalue().encode(encoding)

def read(tmp_path, data, **options):
    (tmp_path/'table.csv').write_bytes(data)
    return read_table(tmp_path/'table.csv', **options)

def texts(table): return [['' if pd.isna(value) else value for value in row] for row in table.itertuples(index=False)]

@pytest.mark.door
@cases(60)
@given(rows=st.lists(st.tuples(IDS, IDS, IDS), max_size=6), separator=st.sampled_from(',;\t'), encoding=st.sampled_from([*ENCODINGS]),
       quote=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), end=st.sampled_from(['\n', '\r\n']), packed=st.booleans())
def test_any_table_keeps_its_ids(tmp_path, rows, separator, encoding, quote, end, packed):
    data = written([('path', 'label', 'patient'), *rows], separator, encoding, quote, end)
    table = read(tmp_path, gzip.compress(data) if packed else data, needed=('path', 'patient'))
    assert texts(table) == [list(row) for row in rows] and [*table] == ['path', 'label', 'patient']
    assert all(table.dtypes == 'string')

@pytest.mark.door
@cases(30)
@given(ids=st.lists(IDS.filter(bool), min_size=1, max_size=6), dtype=st.sampled_from(['object', 'string', 'category']), p=st.floats(0, 1))
def test_what_pandas_writes_comes_back(tmp_path, ids, dtype, p):
    table = pd.DataFrame(dict(patient=pd.Series(ids, dtype=dtype), p=p, disputed=pd.array([None, *[True]*(len(ids) - 1)], 'boolean')))
    table.to_csv(tmp_path/'t.csv', index=False)
    back = read_table(tmp_path/'t.csv', types=dict(p=float, disputed=bool, absent=int))
    assert [*back.patient] == ids and (back.p == p).all() and back.disputed.equals(table.disputed)

@pytest.mark.parametrize('ids,dtype', [([7, 70], int), ([7., 70.], float), (['007', '7'], 'object')])
def test_ids_are_what_was_written_whatever_their_type(tmp_path, ids, dtype):
    pd.DataFrame(dict(path=['a', 'b'], patient=np.array(ids, dtype))).to_csv(tmp_path/'t.csv', index=False)
    assert [*read_table(tmp_path/'t.csv').patient] == [str(value) for value in np.array(ids, dtype)]

REFUSED = {
    'no such column': (b'name;class\n1;2\n', "no column path; found the columns .'name', 'class'., separated by ';'"),
    'a separator nobody knows': (b'path|label\n1|2\n', "no column path; found the columns .'path.label'"),
    'repeated': (b'path,label,label\n1,2,3\n', "column is there twice; found the columns .'path', 'label', 'label'"),
    'repeated but for blanks': (b'path,label, label\n1,2,3\n', "column is there twice"),
    'long row': (b'path,label\n1,2\n1,2,3\n', "3 fields in the row .'1', '2', '3'.; found the columns .'path', 'label'"),
    'short row': (b'path,label\n\n1\n', "1 fields in the row .'1'.; found"),
    'latin-1': ('path,label\nü,2\n'.encode('latin-1'), 'no text in UTF-8 or UTF-16'),
    'utf-32': ('path,label\n1,2\n'.encode('utf-32'), 'no text in UTF-8 or UTF-16'),
    'a workbook': (b'PK\x03\x04\x14\0\0\0' + bytes(range(256)), 'no text in UTF-8 or UTF-16'),
    'open quotation': (b'path,label\n1,"2\n', 'a quotation mark is not closed'),
    'empty': (b'', "no column path; found the columns ..,"),
    'decimal comma': (b'path;p\n1;0,5\n', "column p: float is expected .*'0,5'"),
    'a word for a number': (b'path,p\n1,high\n', "column p: float is expected .*'high'"),
    'neither yes nor no': (b'path,disputed\n1,maybe\n', "column disputed: bool is expected .*'maybe', not True or False")}

@pytest.mark.parametrize('kind', REFUSED)
def test_refused_in_a_sentence_that_names_what_was_found(tmp_path, kind):
    data,says = REFUSED[kind]
    with pytest.raises(ValueError, match=says) as e: read(tmp_path, data, needed=['path'], types=dict(p=float, disputed=bool))
    assert 'table.csv' in str(e.value) and '\n' not in str(e.value)

def test_two_separators_that_fit_must_be_settled(tmp_path):
    data = b'a;b,c\n1;2,3\n'
    with pytest.raises(ValueError, match="separated by ',' or ';'"): read(tmp_path, data)
    assert [*read(tmp_path, data, separator=';')] == ['a', 'b,c'] and [*read(tmp_path, data, needed=['c'])] == ['a;b', 'c']

def test_no_such_table(tmp_path):
    with pytest.raises(FileNotFoundError, match='gone.csv'): read_table(tmp_path/'gone.csv')

@pytest.mark.parametrize('header,columns,first', [(0, ['a', 'b'], ['007', 'x']), (1, ['007', 'x'], ['8', 'y']), (None, [0, 1], ['a', 'b'])])
def test_header(tmp_path, header, columns, first):
    table = read(tmp_path, b'a,b\n007,x\n8,y\n', header=header)
    assert [*table] == columns and texts(table)[0] == first

def test_yes_and_no_in_many_ways(tmp_path):
    table = read(tmp_path, b'd\nTrue\nFALSE\n1\n0\n""\n', types=dict(d=bool))
    assert table.d.fillna(True).tolist() == [True, False, True, False, True] and table.d.isna().sum() == 1
