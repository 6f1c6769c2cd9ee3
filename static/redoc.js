/* global Redoc */
Redoc.init(
  "/openapi.json",
  { hideDownloadButton: false, requiredPropsFirst: true, theme: { typography: { fontFamily: "system-ui, sans-serif", headings: { fontFamily: "system-ui, sans-serif" } } } },
  document.getElementById("reader"),
);
