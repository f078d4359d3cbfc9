//! What somebody who means harm, or makes a slip, may send and write: it costs what it is about and nothing else.

use crate::harness::Home;

#[tokio::test]
async fn events_of_a_run_can_be_paged_whatever_the_language_of_its_thoughts() {
    // One of the three is cut within a character, wherever the numbers before it end.
    let steps: String = ["", "x", "xx"]
        .iter()
        .map(|start| format!("[[steps]]\nthought = \"{start}{}\"\nrun = \"true\"\n", "€".repeat(60)))
        .collect();
    let home = Home::new("").task("words", &format!("title = \"Words\"\n{steps}"));
    let server = home.serve().await;
    let run = server.client.run("words").await;
    server.client.ended(&run).await;
    let (_, all) = server.client.get("/tasks/words/events").await;
    let (status, page) = server.client.get(&format!("/tasks/words/events?run={run}")).await;
    assert_eq!(status, 200, "{page}");
    assert_eq!(page["items"], all["items"]);
    server.stop().await;
}
