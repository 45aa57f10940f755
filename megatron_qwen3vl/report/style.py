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
p{margin:.5rem 0;max-width:60rem;overflow-wrap:anywhere}
.note,figcaption{color:var(--soft);font-size:.87rem}
.warn{color:var(--warn)}
.wide{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:600;white-space:nowrap}
td{min-width:3rem;max-width:36rem;overflow-wrap:anywhere}
td:not(.n){min-width:6.5rem}
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
.answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,9.5rem),1fr));gap:1rem}
.answers figure{border:1px solid var(--rule);border-radius:.3rem;padding:.5rem}
.answers img{display:block;max-width:100%;max-height:14rem;min-width:6rem;height:auto;margin-bottom:.3rem}
dl{margin:.3rem 0;font-size:.87rem}dl div{display:flex;gap:.5rem}
dt{color:var(--soft);min-width:2.8rem}dd{margin:0;overflow-wrap:anywhere;min-width:0}
.yes{color:var(--three)}.no{color:var(--warn)}
"""

INSPECTION_STYLE = """
:root{--pred:#cfe8d5;--ctl:#7a3fb5}
@media (prefers-color-scheme:dark){:root{--pred:#1f4a31;--ctl:#c79bf2}}
section{margin:1.2rem 0 2rem}
h3{margin:.8rem 0 .2rem;font-size:1rem;overflow-wrap:anywhere}
.strip{display:flex;height:1.1rem;border:1px solid var(--rule);margin:.4rem 0}
.strip i{min-width:0;border-right:1px solid var(--bg);background:var(--rule)}
.strip .pad{background:repeating-linear-gradient(45deg,transparent 0 4px,var(--rule) 4px 6px)}
.c1{--c:#1f66c1}.c2{--c:#c2570c}.c3{--c:#177a4c}.c4{--c:#9a3fb0}.c5{--c:#a07800}.c6{--c:#128a94}
.strip [class^=c]{background:var(--c)}
.doc{border:1px solid var(--rule);border-radius:.3rem;padding:.3rem .6rem;margin:.5rem 0;overflow-wrap:anywhere}
summary b{background:var(--c);color:#fff;border-radius:.2rem;padding:0 .35rem;font-size:.8rem}
.t{font:14px/1.75 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.t i,p i{font-style:normal;border-bottom:1px solid var(--rule);box-shadow:inset 1px 0 var(--rule)}
.t i.p,p i.p{background:var(--pred)}
i.k{color:var(--ctl);font-weight:600}
.t sup{color:var(--soft);font-size:10px;margin:0 .2rem 0 .3rem}
.t figure{display:block;margin:.3rem 0;font-family:system-ui,sans-serif}
.t img{max-width:100%;height:auto;border:1px solid var(--rule);margin-right:.3rem;image-rendering:auto}
.gap{color:var(--soft);text-align:center;font-style:italic}
.hist{width:100%;max-width:40rem;margin-bottom:.6rem}
.bar{width:60%}.bar i{display:block;height:.8rem;background:var(--one);opacity:.6}
"""
