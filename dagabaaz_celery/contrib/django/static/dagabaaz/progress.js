/* Keeps what it finds up to date: <… data-dagabaaz-url="…" data-dagabaaz-seconds="2" data-dagabaaz-over="no">.
   The address answers with the same element anew; of it, each data-dagabaaz-part that differs is put in place.
   At the end it stops, and the element gets an event "dagabaaz:over" that bubbles. */
(function () {
  "use strict";

  if (window.dagabaazFollows) { return; }
  window.dagabaazFollows = true;
  var LONGEST_PAUSE = 60000;

  function parts(root) {
    var found = {};
    root.querySelectorAll("[data-dagabaaz-part]").forEach(function (part) { found[part.dataset.dagabaazPart] = part; });
    return found;
  }

  function follow(root) {
    var url = root.dataset.dagabaazUrl;
    var pause = Math.max(Number(root.dataset.dagabaazSeconds) || 2, 0.2) * 1000;
    var failures = 0;
    var shown = {};

    function say(words) {
      var notice = root.querySelector("[data-dagabaaz-notice]");
      if (notice && notice.textContent !== words) { notice.textContent = words; }
    }

    // Only what changed: nothing flickers, what is selected stays so, and a screen reader is told of news alone.
    function put(fresh) {
      var here = parts(root), there = parts(fresh);
      Object.keys(there).forEach(function (name) {
        var html = there[name].innerHTML;
        if (here[name] && shown[name] !== html) { here[name].innerHTML = html; }
        shown[name] = html;
      });
      root.dataset.dagabaazOver = fresh.dataset.dagabaazOver;
      if (fresh.dataset.dagabaazStatus) { root.dataset.dagabaazStatus = fresh.dataset.dagabaazStatus; }
    }

    function end() {
      say("");
      root.dispatchEvent(new CustomEvent("dagabaaz:over", { bubbles: true, detail: { status: root.dataset.dagabaazStatus } }));
    }

    function later() {
      setTimeout(look, Math.min(pause * Math.pow(2, failures), LONGEST_PAUSE));
    }

    function look() {
      if (document.hidden) { document.addEventListener("visibilitychange", look, { once: true }); return; }
      fetch(url, { credentials: "same-origin", headers: { "X-Requested-With": "XMLHttpRequest" } }).then(function (answer) {
        if (answer.status === 403 || answer.status === 404 || answer.redirected) {
          say("This is not kept up to date any more. Load the page again.");
          return null;
        }
        if (!answer.ok) { throw new Error("the server answered " + answer.status); }
        return answer.text().then(function (text) {
          var fresh = new DOMParser().parseFromString(text, "text/html").querySelector("[data-dagabaaz-url]");
          if (!fresh) { throw new Error("the server answered something else"); }
          put(fresh);
          failures = 0;
          say("");
          if (root.dataset.dagabaazOver === "yes") { end(); } else { later(); }
        });
      }).catch(function (error) {
        failures += 1;
        say("Not up to date: " + error.message);
        later();
      });
    }

    Object.keys(parts(root)).forEach(function (name) { shown[name] = parts(root)[name].innerHTML; });
    if (root.dataset.dagabaazOver !== "yes") { setTimeout(look, pause); }
  }

  function begin() { document.querySelectorAll("[data-dagabaaz-url]").forEach(follow); }

  if (document.readyState === "loading") { document.addEventListener("DOMContentLoaded", begin); } else { begin(); }
})();
