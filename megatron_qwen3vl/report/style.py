"""The style sheet of the report: system fonts, one accent per curve, both colour schemes."""

STYLE = """
:root{--bg:#fff;--fg:#1d2430;--soft:#5c6675;--rule:#d9dee6;--one:#1f66c1;--two:#c2570c;--three:#177a4c;--warn:#a11}
@media (prefers-color-scheme:dark){:root{--bg:#14181f;--fg:#e4e8ee;--soft:#9aa5b5;--rule:#313946;--one:#6aa9f7;
--two:#f0975a;--three:#5cc793;--warn:#f77}}
*{box-sizing:border-box}
body{background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;
padding:1rem 1rem 3rem}
h1{font-size:1.6rem;margin:.3rem 0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:1.8rem 0 .5rem;border-bottom:1px solid var(--rule);padding-bottom:.2rem}
p{margin:.5rem 0;max-width:60rem}
.note,figcaption{color:var(--soft);font-size:.87rem}
.warn{color:var(--warn)}
.wide{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:600;white-space:nowrap}
td{min-width:3rem;max-width:36rem;overflow-wrap:anywhere}
td.n,th.n{text-align:right;white-space:nowrap}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:1.2rem}
.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}
figure{margin:0;min-width:0}
figcaption b{color:var(--fg)}
svg{display:block;width:100%;height:auto}
svg text{font-size:12px;fill:var(--soft)}
svg path{fill:none}
.grid{stroke:var(--rule)}
path.stage{stroke:var(--soft);stroke-dasharray:3 3}
.l1,.l2,.l3{stroke-width:1.6;stroke-linejoin:round}
.l1{stroke:var(--one)}.l2{stroke:var(--two)}.l3{stroke:var(--three)}
.d1{fill:var(--one)}.d2{fill:var(--two)}.d3{fill:var(--three)}
svg path.b1{fill:var(--one);opacity:.16}svg path.b2{fill:var(--two);opacity:.16}
svg path.b3{fill:var(--three);opacity:.16}
.keys span{margin-left:.8rem;white-space:nowrap}
.keys span:before{content:"";display:inline-block;width:1rem;height:.2rem;margin-right:.3rem;vertical-align:middle}
.keys .dot:before{width:.5rem;height:.5rem;border-radius:50%}
.k1:before{background:var(--one)}.k2:before{background:var(--two)}.k3:before{background:var(--three)}
.share{display:block;position:relative;width:6.5rem;margin-left:auto}
.share i{position:absolute;left:0;top:.15rem;bottom:.15rem;background:var(--one);opacity:.28}
.share span{position:relative}
pre{overflow-x:auto;font-size:.8rem;line-height:1.35}
summary{cursor:pointer}
"""
