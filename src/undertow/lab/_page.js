// Charts are drawn as SVG in the page's own colour (currentColor): they follow light, dark and print.
const config = JSON.parse(document.getElementById("chart-config").textContent);
for (const place of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(place.querySelector("script").textContent);
  const options = {
    config, renderer: "svg", downloadFileName: place.id,
    actions: { export: true, source: false, compiled: false, editor: false },
  };
  window.vegaEmbed(place.querySelector("div"), spec, options).catch((error) => {
    place.querySelector("div").textContent = "This chart could not be drawn: " + error.message;
  });
}
