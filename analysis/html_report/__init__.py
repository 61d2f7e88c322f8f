"""`grace-opt report`: one self-contained HTML page from any result.json.

command       the entry: reads, rebuilds what the figures need, writes the page
result_file   result.json, checked
inputs        model, cluster, trace and plan of a result, built again and checked against it
elements      HTML and SVG as trees, so that every text is escaped
units         numbers with one unit a column
chart, bars, curves, heatmap, lanes      pictures, drawn with classes of style.css alone
headline, advice, planners, placement, trade_offs, agreement, inputs_table      sections
page          sections in order, head and style
"""
